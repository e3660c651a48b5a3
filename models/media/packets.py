"""When everything in a clip is on: one pass over its packets, without decoding.

Headers only guess at frame rates and counts; the packets' own times decide. What is known afterwards is which frames
are visible (edit lists hide some), when each of them is on, where clocks start anew (recordings that were joined), how
long each track lasts, and which packets arrived incomplete. So frames can be chosen, and clips that are too long be
refused, before anything is decoded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.stream import VideoStream
from jaxtyping import Bool, Float, Int

UNREADABLE = (FFmpegError, OSError)
"""What reading damaged files raises; the latter where they make FFmpeg seek to before their start."""
RESTART = 0.1  # seconds by which a decoding clock must go back to count as a new one
SOUND_REACH = 16
"""How many packets back a new clock of sound starts: transport streams tell the time of several at once, so that those
between are guessed, which goes wrong where the sampling rate changes."""
JUMP = 10.0  # seconds by which the clocks of a transport stream must leap ahead together to count as new ones
SAME_LEAP = 1.0  # seconds by which a leap ahead and one back may differ and still be one damaged time
NOTHING = (math.inf, -math.inf)  # the span of a part in which nothing is visible
BEYOND = 1 << 62  # no time
NTSC = 1001 / 1000
SHOWN_VP8 = 0x10  # the bit of a VP8 frame's first byte that tells visible frames from those only referred to


@dataclass(frozen=True)
class FrameTimes:
    """When the frames of a video are on screen.

    Attributes:
        starts: seconds at which each frame appears, ascending.
        end: the second at which the last one disappears.
        rate: frames per second: exact where they are evenly spaced, else their number by the time they last. None
            where a single frame does not show it.
    """

    starts: Float[np.ndarray, " n"]
    end: float
    rate: float | None

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Track:
    """What the packets of a stream say.

    Attributes:
        stream: number of the stream in its container.
        kind: "video" or "audio".
        codec: its name; None if it is not known.
        default: whether the file marks it as the one to play.
        encrypted: whether its packets are.
        packets: how many there are.
        visible: how many of them are seen or heard.
        start: second at which it starts, on the clock of the first part.
        end: second at which it ends, likewise.
        incomplete: packets of which a transport stream lost parts.
        position: the byte of the file up to which its packets reach, at least.
        parts: how many clocks it has, one after the other.
        order: of each packet, in the order of the file, the number of its frame in order of presentation. None for
            sound, and for video without presentation times, whose frames are counted as they are decoded.
        shifts: of each packet, ticks to add to its times, so that there is one clock.
        frames: of a video, when its frames are on, likewise.
        size: of a video, (height, width) in pixels by the header, before it is turned; None where that is unknown.
    """

    stream: int
    kind: str
    codec: str | None
    default: bool
    encrypted: bool
    packets: int
    visible: int
    start: float
    end: float
    incomplete: int
    position: int
    parts: int
    order: Int[np.ndarray, " packets"] | None
    shifts: Int[np.ndarray, " packets"]
    frames: FrameTimes | None
    size: tuple[int, int] | None


@dataclass
class _Packets:
    """The packets of one stream, as they come."""

    stream: Stream
    codec: str | None
    tick: float
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    incomplete: list[bool] = field(default_factory=list)
    encrypted: bool = False
    position: int = 0

    def add(self, packet: av.Packet, *, incomplete: bool) -> None:
        shown = not packet.is_discard
        if self.stream.type == "audio" and packet.pts is not None:  # what lies before the clip primes the decoder
            shown = shown and packet.pts + (packet.duration or 0) > 0
        skipped = 0
        if self.codec and packet.has_sidedata("skip_samples") and isinstance(self.stream, AudioStream):
            samples = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
            skipped = round(samples / (self.stream.rate or 1) / self.tick)
        if shown and self.codec == "vp8":
            shown = bool(memoryview(packet)[0] & SHOWN_VP8)
        self.pts.append(packet.pts)
        self.dts.append(packet.dts)
        self.durations.append(packet.duration or 0)
        self.skipped.append(skipped)
        self.shown.append(shown)
        self.incomplete.append(incomplete)
        self.position = max(self.position, (packet.pos or 0) + packet.size)
        self.encrypted = self.encrypted or packet.has_sidedata("encryption_info")


def packets_of(container: InputContainer, streams: Sequence[Stream]) -> Iterator[av.Packet]:
    """The packets of some streams, in the order of the file, and an empty one at the end of each.

    Raises:
        FFmpegError, OSError: the file cannot be read further.
    """
    packets = container.demux(streams)
    while True:
        try:
            yield next(packets)
        except (StopIteration, IndexError):  # the latter where PyAV, at the end, comes upon streams that began midway
            return


def scan(container: InputContainer) -> list[Track]:
    """Reads all packets of a container; returns its video and sound tracks in their order, without cover pictures."""
    streams = [s for s in container.streams if s.type in ("video", "audio") and not is_cover(s)]
    found = {s.index: _Packets(s, _codec(s), float(s.time_base or 1)) for s in streams}
    transport = container.format.name == "mpegts"
    try:
        for packet in packets_of(container, streams) if streams else ():
            if packet.size:
                found[packet.stream.index].add(packet, incomplete=transport and packet.is_corrupt)
    except UNREADABLE:
        pass  # decoding counts it
    return _tracks(list(found.values()), container.format.name)


def _codec(stream: Stream) -> str | None:
    """The name of a stream's codec; None if it is not known, and there is no decoder."""
    return None if stream.codec_context is None else stream.codec_context.name


def seconds(ticks: int, stream: Stream) -> float:
    """A time of a stream, rounded as PyAV rounds that of a frame."""
    base = stream.time_base or Fraction(1)
    return float(ticks * base.numerator / base.denominator)


def is_cover(stream: Stream) -> bool:
    """Whether a stream is a picture that belongs to a sound file."""
    return bool(stream.disposition & Disposition.attached_pic)


@dataclass(frozen=True)
class _Clock:
    """The times of one stream in ticks, without holes.

    Attributes:
        times: of presentation, of each packet.
        counted: whether the file has no times of presentation, so that decoding times stand for them.
        leaps: seconds from the decoding time of each packet to that of the next one.
        overtaken: whether the next one is also earlier than what came some packets before it.
    """

    times: Int[np.ndarray, " packets"]
    counted: bool
    leaps: Float[np.ndarray, " packets-1"]
    overtaken: Bool[np.ndarray, " packets-1"]

    def restarts(self) -> list[int]:
        """The packets at which the clock goes back, or leaps ahead and back by as much."""
        back = (self.leaps < -RESTART) & self.overtaken
        unusual = np.flatnonzero(back | (self.leaps > JUMP))
        pairs = np.abs(self.leaps[unusual[:-1]] + self.leaps[unusual[1:]]) < SAME_LEAP
        back[unusual[:-1][pairs]] = back[unusual[1:][pairs]] = True
        return (np.flatnonzero(back) + 1).tolist()

    def leaps_ahead(self) -> list[int]:
        """The packets to which the clock leaps ahead."""
        return (np.flatnonzero(self.leaps > JUMP) + 1).tolist()


def _clock(packets: _Packets, *, guessed: bool) -> _Clock:
    """Fills in what is missing; `guessed` are times of presentation that the file does not hold."""
    counted = guessed or any(pts is None for pts, shown in zip(packets.pts, packets.shown, strict=True) if shown)
    dts = _filled(packets.dts, packets.durations)
    times = dts if counted else np.array([d if p is None else p for p, d in zip(packets.pts, dts, strict=True)], int)
    decoding = times if all(time is None for time in packets.dts) else dts
    reach = SOUND_REACH if packets.stream.type == "audio" else 1
    before = decoding[np.maximum(np.arange(1, len(decoding)) - reach, 0)]
    return _Clock(times, counted, np.diff(decoding) * packets.tick, decoding[1:] < before)


def _part_starts(clocks: Sequence[_Clock], *, transport: bool) -> list[list[int]]:
    """For each stream the packets at which a new clock starts, the first one included.

    The clocks of a transport stream may also start anew at later times; then those of all its streams leap ahead.
    """
    starts = [{0, *clock.restarts()} for clock in clocks]
    ahead = [clock.leaps_ahead() for clock in clocks if len(clock.times)]
    if transport and len({len(leaps) for leaps in ahead}) == 1:
        starts = [found | set(clock.leaps_ahead()) for found, clock in zip(starts, clocks, strict=True)]
    return [sorted(found) for found in starts]


def _filled(times: Sequence[int | None], durations: Sequence[int]) -> Int[np.ndarray, " packets"]:
    """Times in which each missing one follows on the one before."""
    known = next((number for number, time in enumerate(times) if time is not None), None)
    out = np.zeros(len(times), np.int64)
    following = 0
    if known is not None:
        following = (times[known] or 0) - sum(durations[:known])
    for number, time in enumerate(times):
        out[number] = following if time is None else time
        following = out[number] + max(durations[number], 1)
    return out


def _tracks(found: list[_Packets], container: str) -> list[Track]:
    clocks = [_clock(packets, guessed=container == "avi") for packets in found]
    starts = _part_starts(clocks, transport=container == "mpegts")
    spans = [_part_spans(*each) for each in zip(found, clocks, starts, strict=True)]
    shared = _joins([span for span in spans if span]) if len({len(span) for span in spans if span}) == 1 else None
    offsets = [_joins([span]) if shared is None else shared for span in spans]
    return [_track(*each) for each in zip(found, clocks, starts, offsets, strict=True)]


def _part_spans(packets: _Packets, clock: _Clock, starts: Sequence[int]) -> list[tuple[float, float]]:
    """Start and end of each part of a track in seconds, on the part's own clock; none if nothing is visible."""
    shown, ends = np.array(packets.shown, bool), clock.times + np.array(packets.durations, np.int64)
    spans = []
    for first, last in zip(starts, [*starts[1:], len(shown)], strict=True):
        part = np.arange(first, last)[shown[first:last]]
        start, end = clock.times[part].min(initial=BEYOND), ends[part].max(initial=-BEYOND)
        spans.append((float(start) * packets.tick, float(end) * packets.tick) if len(part) else NOTHING)
    return spans if any(span != NOTHING for span in spans) else []


def _joins(tracks: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Seconds to add to the clock of each part, so that it starts where the part before has ended in all tracks."""
    offsets: list[float] = []
    end = None
    for spans in zip(*tracks, strict=True):
        start, last = min(start for start, _ in spans), max(last for _, last in spans)
        offsets.append(0.0 if end is None or start == math.inf else end - start)
        end = end if last == -math.inf else last + offsets[-1]
    return offsets


def _track(packets: _Packets, clock: _Clock, starts: Sequence[int], offsets: Sequence[float]) -> Track:
    stream = packets.stream
    shifts, joints = np.zeros(len(clock.times), np.int64), np.zeros(len(clock.times), bool)
    for first, offset in zip(starts, offsets, strict=False):
        shifts[first:] = round(offset / packets.tick)
        joints[max(first - 2, 0) : first + 1] = len(starts) > 1
    times, shown = clock.times + shifts, np.array(packets.shown, bool)
    durations = np.array(packets.durations, np.int64)
    start = end = 0.0
    order = frames = size = None
    if shown.any():
        start = seconds(int((times + np.array(packets.skipped))[shown].min()), stream)
        start = start if stream.type == "video" else max(start, 0.0)
        end = seconds(int((times + durations)[shown].max()), stream)
    if packets.codec and shown.any() and isinstance(stream, VideoStream):
        presented = np.argsort(times[shown], kind="stable")
        order = np.full(len(times), -1, np.int64)
        order[np.flatnonzero(shown)[presented]] = np.arange(len(presented))
        frames = _frame_times(stream, times[shown][presented], durations[shown][presented])
        end = frames.end
        size = (stream.height, stream.width) if stream.height and stream.width else None
    return Track(
        stream=stream.index,
        kind=stream.type,
        codec=packets.codec,
        default=bool(stream.disposition & Disposition.default),
        encrypted=packets.encrypted,
        packets=len(times),
        visible=int(shown.sum()),
        start=start,
        end=end,
        incomplete=int((np.array(packets.incomplete, bool) & ~joints).sum()),
        position=packets.position,
        parts=len(starts),
        order=None if clock.counted else order,
        shifts=shifts,
        frames=frames,
        size=size,
    )


def _frame_times(stream: VideoStream, ticks: Int[np.ndarray, " n"], durations: Int[np.ndarray, " n"]) -> FrameTimes:
    """Times of frames in order of presentation; the last one stays as long as its packet says, or as a usual one."""
    tick = Fraction(stream.time_base or 1)
    last = int(durations[-1]) or (int(np.median(np.diff(ticks))) if len(ticks) > 1 else 0)
    length = (int(ticks[-1] - ticks[0]) + last) * tick
    starts = ticks * tick.numerator / tick.denominator
    named = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
    return FrameTimes(starts, float(starts[0] + length), frame_rate(starts, length, named, float(tick)))


def frame_rate(
    starts: Float[np.ndarray, " n"], length: Fraction, named: Sequence[Fraction], rounding: float
) -> float | None:
    """Frames per second of a video.

    Args:
        starts: seconds at which each frame appears, ascending.
        length: seconds from the first frame to the end of the last.
        named: rates that the header names. One is believed where the frames follow it, since it is exact, and times
            are rounded.
        rounding: seconds by which times are rounded.

    Returns:
        The rate of evenly spaced frames, of which some may be early or late by less than half of their distance; of
        others their number by the seconds. None if a single frame has no length.
    """
    count = len(starts)
    if count > 1:
        slope, first = np.polyfit(np.arange(count), starts, 1)
        jitter = float(np.abs(starts - first - slope * np.arange(count)).max())
        if 2 * jitter < slope:
            for rate in _candidates(named, slope):
                if abs(starts[-1] - starts[0] - (count - 1) / float(rate)) <= 2 * jitter + rounding:
                    return float(rate)
    return float(count / length) if length > 0 else None


def _candidates(named: Sequence[Fraction], slope: float) -> Iterator[Fraction]:
    """Rates that frames which are `slope` seconds apart may have: those named, and the usual ones."""
    yield from named
    if whole := round(1 / slope):
        yield Fraction(whole)
    if whole := round(NTSC / slope):
        yield Fraction(whole * 1000, 1001)

"""Decoding of the chosen tracks of a container: frames by their numbers, sound on the clip's time line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from models.errors import UserError
from models.media.packets import UNREADABLE, Track, packets_of
from models.media.waveform import SAMPLE_RATE, MonoResampler

Resize = Callable[[av.VideoFrame], UInt8[np.ndarray, "h w 3"]]
Progress = Callable[[float, float | None], None]
"""Called with the seconds decoded so far and the seconds in all (None where unknown)."""

TIMELESS = frozenset({"aac", "ac3", "eac3", "mp3", "dts", "truehd", "loas"})
"""Kinds of files that hold no times: FFmpeg guesses them, by the sampling rate of the beginning."""
OPTIONS = {
    "merge_pmt_versions": "1"
}  # transport streams that were joined: the second picture track continues the first
GAP = 0.1  # seconds without sound that are a hole in the recording, to be filled with silence


PLAYLISTS = (b"#EXTM3U", b"ffconcat version", b"v=0\r\n", b"v=0\n")
"""How files begin for which FFmpeg would open others: HLS (and wait for more of them), its own lists, and SDP."""


def open_container(path: Path, file: IO[bytes]) -> InputContainer:
    """Opens a container, by its content alone: names like `a%d.mp4` or `concat:x` mean nothing special.

    Raises:
        UserError: it is none.
    """
    head = file.read(4096)
    file.seek(0)
    if head.startswith(PLAYLISTS) or b"<MPD" in head[:1024]:
        raise UserError(f"{path} is a list of other files, and has no pictures or sound of its own; name one of those.")
    try:
        container = av.open(file, "r", metadata_errors="replace", options=OPTIONS)
    except UNREADABLE as error:
        raise UserError(f"{path} is not a readable video, sound or picture file ({error.strerror}); it may be damaged, "
                        "cut short or something else under that name.") from error  # fmt: skip
    if container.format.name == "tty":  # FFmpeg's way of showing plain text
        container.close()
        raise UserError(f"{path} is a text file, not a video, sound or picture.")
    return container


class FrameSampler:
    """Keeps the chosen frames of a video; in the place of one that cannot be decoded, the one before it."""

    def __init__(self, numbers: Sequence[int], resize: Resize) -> None:
        """Prepares to sample.

        Args:
            numbers: of the frames to keep, ascending; some may repeat.
            resize: from a decoded frame to what is kept.
        """
        self.sampled: list[np.ndarray] = []
        self._numbers = numbers
        self._resize = resize
        self._last: av.VideoFrame | None = None
        self._pixels: np.ndarray | None = None
        self._number = -1

    def add(self, frame: av.VideoFrame, number: int | None) -> int:
        """Takes the next frame in order of presentation; returns its number, which without one is the next."""
        self._number = self._number + 1 if number is None else number
        self._keep_before(self._number)
        self._last, self._pixels = frame, None
        return self._number

    def finish(self) -> None:
        """Keeps the last frame for all numbers that are left."""
        self._keep_before(None)

    def _keep_before(self, number: int | None) -> None:
        while self._last is not None and len(self.sampled) < len(self._numbers):
            if number is not None and self._numbers[len(self.sampled)] >= number:
                return
            if self._pixels is None:
                self._pixels = self._resize(self._last)
            self.sampled.append(self._pixels)


class SoundTrack:
    """Collects sound on the clip's time line."""

    def __init__(self) -> None:
        """Prepares an empty track."""
        self._resampler = MonoResampler()
        self._blocks: list[np.ndarray] = []
        self._start = 0.0
        self._samples = 0
        self.end = 0.0

    @property
    def empty(self) -> bool:
        """Whether nothing was added yet."""
        return not self._blocks

    def add(self, frame: av.AudioFrame, time: float | None) -> None:
        """Takes the next frame; a hole before it becomes silence."""
        if time is not None:
            if not self._blocks:
                self._start = time
            hole = time - (self._start + self._samples / SAMPLE_RATE)
            if hole > GAP:
                self._append(np.zeros(round(hole * SAMPLE_RATE), np.float32))
        for block in self._resampler.blocks(frame):
            self._append(block)

    def _append(self, block: np.ndarray) -> None:
        self._blocks.append(block)
        self._samples += len(block)
        self.end = self._start + self._samples / SAMPLE_RATE

    def finish(self) -> Float[np.ndarray, " samples"] | None:
        """Returns the waveform from the clip's start, or None if there was no sound."""
        for block in self._resampler.blocks(None):
            self._append(block)
        if not self._samples:
            return None
        late = round(self._start * SAMPLE_RATE)
        if late > 0:
            return np.concatenate([np.zeros(late, np.float32), *self._blocks])
        return np.concatenate(self._blocks)[-late:]


@dataclass
class Damage:
    """Counts packets, and those that could not be decoded."""

    packets: int = 0
    damaged: int = 0


@dataclass(frozen=True)
class Decoded:
    """What decoding some tracks gave.

    Attributes:
        frames: those chosen, none if no frame could be decoded.
        audio: 16 kHz mono from the clip's start; None if none could be decoded.
        damage: of each track, by the number of its stream.
        broken: whether the file could not be read to its end.
    """

    frames: list[UInt8[np.ndarray, "h w 3"]]
    audio: Float[np.ndarray, " samples"] | None
    damage: dict[int, Damage]
    broken: bool


class _Decoder:
    """Decodes the packets of the chosen tracks, one after the other."""

    def __init__(self, tracks: Sequence[Track], numbers: Sequence[int], resize: Resize, *, timeless: bool) -> None:
        self.origin = min(track.start for track in tracks)
        self.total = max(track.end for track in tracks) - self.origin
        self.done = 0.0
        self.damage = {track.stream: Damage() for track in tracks}
        self.pictures, self.sound = FrameSampler(numbers, resize), SoundTrack()
        self._tracks = {track.stream: track for track in tracks}
        self._timeless = timeless

    def add(self, packet: av.Packet) -> None:
        """Decodes a packet; an empty one ends its track."""
        track = self._tracks[packet.stream.index]
        damage = self.damage[track.stream]
        if packet.size:
            _label(packet, track, damage.packets)
            damage.packets += 1
        try:
            frames = packet.decode()
        except UNREADABLE:
            damage.damaged += 1
            return
        for frame in frames:
            if isinstance(frame, av.AudioFrame):
                self._hear(frame)
            elif isinstance(frame, av.VideoFrame) and track.frames is not None:
                number = min(self.pictures.add(frame, frame.pts), len(track.frames) - 1)
                self.done = max(self.done, float(track.frames.starts[number]) - self.origin)

    def _hear(self, frame: av.AudioFrame) -> None:
        time = None if self._timeless else frame.time
        if self.sound.empty and len(self._tracks) == 1 and time is not None:
            self.origin = time  # sound alone starts with its first sample
        self.sound.add(frame, None if time is None else time - self.origin)
        self.done = max(self.done, self.sound.end)


def decode(
    container: InputContainer,
    tracks: Sequence[Track],
    numbers: Sequence[int],
    resize: Resize,
    progress: Progress | None,
) -> Decoded:
    """Decodes tracks of a container that `packets.scan` has read.

    Args:
        container: freshly opened.
        tracks: at most one of each kind.
        numbers: of the frames to keep, ascending.
        resize: from a decoded frame to what is kept.
        progress: called with how far decoding is.
    """
    streams = [container.streams[track.stream] for track in tracks]
    for stream in streams:
        if isinstance(stream, VideoStream):
            stream.thread_type = "AUTO"
    decoder = _Decoder(tracks, numbers, resize, timeless=container.format.name in TIMELESS)
    packets, broken = packets_of(container, streams), False
    while True:
        try:
            packet = next(packets, None)
        except UNREADABLE:
            broken = True
            break
        if packet is None:
            break
        decoder.add(packet)
        if progress is not None:
            progress(decoder.done, decoder.total)
    decoder.pictures.finish()
    audio = decoder.sound.finish()
    if progress is not None:
        progress(max(decoder.done, decoder.total), decoder.total)
    return Decoded(decoder.pictures.sampled, audio, decoder.damage, broken)


def _label(packet: av.Packet, track: Track, number: int) -> None:
    """Gives a packet times that its decoder hands on to its frames: a picture's number, sound's place on one clock."""
    if track.kind == "video":
        packet.pts = None if track.order is None or track.order[number] < 0 else int(track.order[number])
        packet.dts = None
    elif track.shifts[number]:
        shift = int(track.shifts[number])
        packet.pts = None if packet.pts is None else packet.pts + shift
        packet.dts = None if packet.dts is None else packet.dts + shift

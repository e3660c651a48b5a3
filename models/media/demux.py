"""Decoding of containers with PyAV: choosing streams, sampling frames, collecting sound, and telling damage."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.reformatter import Interpolation
from jaxtyping import Float, UInt8

from models.errors import UserError
from models.media.waveform import SAMPLE_RATE, MonoResampler, to_float

Resize = Callable[[av.VideoFrame], UInt8[np.ndarray, "h w 3"]]

JITTER = 1e-3  # seconds by which containers round timestamps
GAP = 0.1  # seconds without sound that are a hole in the recording, to be filled with silence
# Containers whose headers tell the real duration; elsewhere it is an estimate.
TRUE_DURATIONS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flac"})
MISSING = 0.5  # seconds by which a file may end before its header says
DAMAGED = 0.05  # share of packets that may be damaged before the file is refused


class FrameSampler:
    """Samples the frames that are on screen at given times."""

    def __init__(self, times: Iterable[float], resize: Resize, *, all_times: bool) -> None:
        """Prepares to sample.

        Args:
            times: ascending, in seconds from the start of the clip; may go on for ever.
            resize: from a decoded frame to what is kept.
            all_times: whether times after the end of the clip show its last frame, instead of nothing.
        """
        self.sampled: list[np.ndarray] = []
        self.end = 0.0
        self._times = iter(times)
        self._next = next(self._times, None)
        self._resize = resize
        self._all_times = all_times
        self._shown: av.VideoFrame | None = None
        self._pixels: np.ndarray | None = None

    def add(self, frame: av.VideoFrame, time: float | None) -> None:
        """Takes the next frame; the one before it was on screen until now."""
        time = self.end if time is None else time
        self._sample_until(time)
        self._shown, self._pixels = frame, None
        duration = frame.duration * frame.time_base if frame.duration and frame.time_base else 0
        self.end = max(self.end, time + float(duration))

    def finish(self) -> None:
        """Samples the last frame until its end, and at least once."""
        self._sample_until(math.inf if self._all_times else max(self.end, 2 * JITTER))

    def _sample_until(self, time: float) -> None:
        while self._shown is not None and self._next is not None and self._next < time - JITTER:
            if self._pixels is None:
                self._pixels = self._resize(self._shown)
            self.sampled.append(self._pixels)
            self._next = next(self._times, None)


class SoundTrack:
    """Collects sound on the clip's time line."""

    def __init__(self) -> None:
        """Prepares an empty track."""
        self._resampler = MonoResampler()
        self._blocks: list[np.ndarray] = []
        self._start = 0.0
        self._samples = 0
        self.end = 0.0

    def add(self, frame: av.AudioFrame, time: float | None) -> None:
        """Takes the next frame; a hole before it becomes silence."""
        if time is not None:
            if not self._blocks:
                self._start = time
            hole = time - (self._start + self._samples / SAMPLE_RATE)
            if hole > GAP:
                self._append(np.zeros(round(hole * SAMPLE_RATE), np.int16))
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
        wave = np.concatenate(self._blocks)
        late = round(self._start * SAMPLE_RATE)
        return to_float(np.concatenate([np.zeros(late, np.int16), wave]) if late > 0 else wave[-late:])


def to_pixels(frame: av.VideoFrame, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a frame to RGB of (height, width) `size`, turned as its metadata says."""
    turns = round(frame.rotation / 90) % 4
    if size is not None:
        height, width = size if turns % 2 == 0 else size[::-1]
        frame = frame.reformat(width, height, "rgb24", interpolation=Interpolation.BILINEAR)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def count_frames(path: Path, stream: Stream) -> int:
    """Counts the frames of a stream of a file: by the header, else by its packets, without decoding them."""
    if stream.frames:
        return stream.frames
    with path.open("rb") as file, open_container(path, file) as container:
        return sum(1 for packet in container.demux(container.streams[stream.index]) if packet.size)


def start_of(stream: Stream) -> float | None:
    """The second at which a stream starts, by the header."""
    return (
        None if stream.start_time is None or stream.time_base is None else float(stream.start_time * stream.time_base)
    )


def open_container(path: Path, file: IO[bytes]) -> InputContainer:
    """Opens a container, by its content alone: names like `a%d.mp4` or `concat:x` mean nothing special."""
    try:
        container = av.open(file, "r")
    except FFmpegError as error:
        raise UserError(f"{path} is not a readable video, sound or picture file ({error.strerror}); it may be damaged, "
                        "cut short or something else under that name.") from error  # fmt: skip
    if container.format.name == "tty":  # FFmpeg's way of showing plain text
        container.close()
        raise UserError(f"{path} is a text file, not a video, sound or picture.")
    return container


def check_riff_size(path: Path) -> None:
    """Refuses a wav or avi file that is shorter than its header says, which FFmpeg would read without a word.

    Raises:
        UserError: the file is truncated.
    """
    with path.open("rb") as file:
        header = file.read(8)
    promised, found = int.from_bytes(header[4:8], "little"), path.stat().st_size
    # Recorders that write to a pipe leave the size open, as zero or as all ones.
    if header[:4] == b"RIFF" and found < promised + 8 and promised < 0xFFFF_FF00:
        raise UserError(
            f"{path} is cut short: its header promises {promised + 8} bytes, it has {found}; copy it again."
        )


def chosen_streams(container: InputContainer) -> list[Stream]:
    """Returns the first video stream (a sound file's cover picture does not count) and the first sound stream."""
    video = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic][:1]
    for stream in video:
        stream.thread_type = "AUTO"
    return [*video, *container.streams.audio[:1]]


@dataclass
class Damage:
    """Counts packets, and those that could not be decoded."""

    packets: int = 0
    damaged: int = 0


def decoded(
    container: InputContainer, streams: Sequence[Stream], damage: Damage
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """Decodes packets as they come, counting in `damage` those that cannot be."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            packet = None
            damage.damaged += 1
        if packet is None:
            return
        damage.packets += 1
        try:
            frames = packet.decode()
        except FFmpegError:
            damage.damaged += 1
            continue
        for frame in frames:
            if isinstance(frame, av.VideoFrame | av.AudioFrame):
                yield frame


def check_whole(
    path: Path, container: InputContainer, streams: Sequence[Stream], ends: dict[str, float], damage: Damage
) -> None:
    """Checks that what was decoded is what the file promised.

    Args:
        path: the file, for messages.
        container: the container, read to its end.
        streams: the streams that were decoded.
        ends: by type of stream, the time in seconds at which what was decoded ends.
        damage: what the decoder counted.

    Raises:
        UserError: the file is truncated, or more than a few packets are damaged.
    """
    true = container.format.name in TRUE_DURATIONS
    promises = [(_stream_end(s), ends[s.type]) for s in streams]
    if container.duration and len(streams) == len(container.streams):
        promises.append((((container.start_time or 0) + container.duration) / 1e6, max(ends.values())))
    for promised, end in promises:
        if true and promised is not None and promised - end > MISSING:
            raise UserError(
                f"{path} is cut short: its header promises {promised:.1f} s, and it ends after {end:.1f} s; copy it "
                f"again, or save what is there as a file of its own (ffmpeg -i {path.name} whole{path.suffix})."
            )
    if not damage.damaged and (empty := [s.type for s in streams if not ends[s.type]]):
        raise UserError(f"{path} has an empty {empty[0]} track; record it again, or remove the track.")
    if damage.damaged > DAMAGED * damage.packets or not all(ends[s.type] > 0 for s in streams):
        raise UserError(
            f"{path} is damaged: {damage.damaged} of {damage.packets} packets are unreadable; copy it again."
        )


def _stream_end(stream: Stream) -> float | None:
    """Returns the second at which a stream ends, by the header."""
    if stream.duration is None or stream.time_base is None:
        return None
    return float((stream.duration + (stream.start_time or 0)) * stream.time_base)

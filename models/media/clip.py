"""Reading of clips: which frames and what sound a model gets of the files that people have.

A clip is read in two passes. The first one looks at its packets alone (`packets.scan`): it finds what can be read, when
each frame is on, and whether the file is whole. From that a model chooses its frames, by number or by time, or refuses
the clip. The second pass decodes; only the chosen frames are kept, resized on the way, so that a long clip needs little
memory.

What cannot be read is an error in one sentence, not a shorter clip: a file that was cut short is refused, since an
answer about half a clip would look like an answer about all of it. What players do without as well (single damaged
packets, a track that cannot be read beside one that can) is left out and named in `Media.notes`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import Float, UInt8

from models.errors import UserError
from models.media.demux import Decoded, Progress, decode, open_container
from models.media.packets import FrameTimes, Track, scan
from models.media.paths import clip_path
from models.media.pictures import (
    Flatten,
    animation_frames,
    animation_times,
    find_pictures,
    is_picture,
    on_white,
    picture_size,
    read_picture,
)
from models.media.pixels import to_pixels
from models.media.tracks import choose_tracks, fault
from models.media.waveform import SAMPLE_RATE
from models.media.whole import check_whole, has_open_end, is_fragmented

__all__ = ["Media", "Outline", "Progress", "Sampling", "Span", "read_clip"]

MAX_SECONDS = 3 * 3600
JITTER = 1e-3  # seconds by which containers round timestamps
TIMED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "flac"})
"""Containers whose headers say how long each track is; elsewhere it is an estimate, or a placeholder."""
MISSING = 0.5  # seconds by which a track may end before its header says
UNREAD, LITTLE = 0.2, 1 << 14  # share and bytes that may follow the last packet of a transport stream
DAMAGED = 0.05  # share of packets that may be damaged before the file is refused

Span = tuple[float, float]
"""Start and end of a part of a clip, in seconds from the clip's start."""


@dataclass(frozen=True)
class Outline:
    """What is known of a clip before it is decoded.

    Attributes:
        frames: how many frames will be read.
        size: (height, width) of the frames, by the header, before they are turned; None where they differ.
        seconds: how long its sound is; None without sound.
    """

    frames: int
    size: tuple[int, int] | None
    seconds: float | None


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are read, and at what size.

    Attributes:
        fps: frames per second; a sequence of pictures stands for one every 1 / fps seconds.
        choose: from the number of frames in a video and its frames per second to the numbers of those that are read,
            ascending; None reads one every 1 / fps seconds until the end of the clip: the last that is not later.
        choose_pictures: instead of `choose` for a folder or pattern: from the number of its pictures to the numbers of
            those that are read.
        size: (height, width) that frames are resized to by FFmpeg, bilinearly; None keeps the first frame's.
        resize: instead of `size`, what makes of a frame as it was filmed one of the size that the model wants.
        flatten: makes pictures RGB.
        accept: raises UserError for a clip that the model cannot take, before it is decoded; None takes all.
    """

    fps: float = 1.0
    choose: Callable[[int, float], Sequence[int]] | None = None
    choose_pictures: Callable[[int], Sequence[int]] | None = None
    size: tuple[int, int] | None = None
    resize: Callable[[UInt8[np.ndarray, "y x 3"]], UInt8[np.ndarray, "h w 3"]] | None = None
    flatten: Flatten = on_white
    accept: Callable[[Outline], None] | None = None


@dataclass(frozen=True)
class Media:
    """A decoded clip.

    Attributes:
        frames: RGB frames, from the start of the clip on; None for sound alone.
        audio: 16 kHz mono, in [-1, 1] unless the file is louder, from the start of the clip; None without a sound
            track. Its length is what the file holds, not exactly 16,000 times the duration of the pictures.
        fps: frames per second of the clip.
        notes: sentences about what was left out, damaged or guessed.
    """

    frames: UInt8[np.ndarray, "n h w 3"] | None
    audio: Float[np.ndarray, " samples"] | None
    fps: float = 1.0
    notes: tuple[str, ...] = ()


def read_clip(
    path: str | Path,
    sampling: Sampling = Sampling(),
    *,
    span: Span | None = None,
    progress: Progress | None = None,
) -> Media:
    """Reads a video, a sound file, a picture, an animation, or a sequence of pictures.

    Args:
        path: a file; or a folder or a glob pattern of pictures, which are taken in the order of the numbers in their
            names.
        sampling: which frames are read, and at what size (large files of large frames need much memory).
        span: the part of a video or sound file that is read, as if it were the whole clip; None reads all of it.
        progress: called with how far decoding is.

    Raises:
        UserError: as `clip_path`; it is empty, not a media file, damaged, truncated, encrypted, longer than
            three hours or than the model takes; or nothing of it lies in the span.
    """
    if sampling.fps <= 0:
        raise UserError(f"Cannot sample {sampling.fps} frames per second; choose a number above 0, such as 1.")
    path = clip_path(path)
    try:
        return _read(path, sampling, span, progress)
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than there is; scale its pictures down, or cut it.") from error
    except FFmpegError as error:  # by its scaler or its mixer; those of reading and decoding are counted
        raise UserError(f"{path} cannot be decoded ({error.strerror}); copy it again, or convert it.") from error


def _read(path: Path, sampling: Sampling, span: Span | None, progress: Progress | None) -> Media:
    if span is not None and (not path.is_file() or is_picture(path)):
        raise UserError(f"{path} is no video or sound file, of which alone a part can be read; ask about all of it.")
    if not path.is_file():
        files, notes = find_pictures(path)
        return _read_pictures(files, notes, sampling, progress)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); copy or record it again.")
    if not is_picture(path):
        return _read_container(path, sampling, span, progress)
    times = animation_times(path)
    return _read_pictures([path], (), sampling, progress) if times is None else _read_animation(path, times, sampling)


def check_tokens(tokens: int, most: int, model: str) -> None:
    """Checks the tokens that a clip will make.

    Raises:
        UserError: if they are more than the model reads.
    """
    if tokens > most:
        raise UserError(
            f"The clip makes {tokens} tokens, but {model} reads at most {most}: cut it to less than "
            f"{100 * most // tokens} % of its length."
        )


class _Resizer:
    """Frames in one size."""

    def __init__(self, sampling: Sampling) -> None:
        self._size = sampling.size
        self._resize = sampling.resize

    def frame(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        if self._resize is not None:
            return self._resize(to_pixels(frame, None))
        pixels = to_pixels(frame, self._size)
        self._size = self._size or pixels.shape[:2]
        return pixels

    def picture(self, pixels: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "h w 3"]:
        if self._resize is not None:
            return self._resize(pixels)
        if self._size in (None, pixels.shape[:2]):
            self._size = pixels.shape[:2]
            return pixels
        return to_pixels(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"), self._size)


def _read_pictures(files: list[Path], notes: tuple[str, ...], sampling: Sampling, progress: Progress | None) -> Media:
    resizer, sampled = _Resizer(sampling), []
    numbers: Sequence[int] = range(len(files))
    if len(files) > 1 and sampling.choose_pictures is not None:
        numbers = sampling.choose_pictures(len(files))
    elif len(files) > 1 and sampling.choose is not None:
        numbers = sampling.choose(len(files), sampling.fps)
    if (seen := len(set(numbers))) < len(files):
        notes = (*notes, f"{seen} of the {len(files)} pictures were read; the model takes no more.")
    _check(sampling, Outline(len(numbers), picture_size(files[0]) if len(files) == 1 else None, None))
    last = None
    for number in numbers:
        if number != last:
            picture, others = read_picture(files[number], sampling.flatten)
            pixels, last, notes = resizer.picture(picture), number, (*notes, *others)
        sampled.append(pixels)
        if progress is not None:
            progress(len(sampled) / sampling.fps, len(numbers) / sampling.fps)
    return Media(np.stack(sampled), None, sampling.fps, notes)


def _read_animation(path: Path, times: FrameTimes, sampling: Sampling) -> Media:
    numbers, fps = _frame_numbers(times, 0.0, sampling)
    _check(sampling, Outline(len(numbers), picture_size(path), None))
    resizer = _Resizer(sampling)
    frames = [resizer.picture(pixels) for pixels in animation_frames(path, numbers, sampling.flatten)]
    return Media(np.stack(frames), None, fps)


def _check(sampling: Sampling, outline: Outline) -> None:
    if sampling.accept is not None:
        sampling.accept(outline)


def _frame_numbers(times: FrameTimes, origin: float, sampling: Sampling) -> tuple[Sequence[int], float]:
    """Numbers of the frames to read of a clip that starts at the second `origin`, and their number per second."""
    if sampling.choose is None:
        wanted = np.arange(max(1, math.ceil((times.end - origin - JITTER) * sampling.fps))) / sampling.fps
        numbers = np.searchsorted(times.starts - origin - JITTER, wanted, side="right") - 1
        return np.maximum(numbers, 0).tolist(), sampling.fps
    rate = times.rate or sampling.fps
    chosen = sampling.choose(len(times), rate)
    return chosen, len(chosen) * rate / len(times)


def _read_container(path: Path, sampling: Sampling, span: Span | None, progress: Progress | None) -> Media:
    check_whole(path)
    with path.open("rb") as file, open_container(path, file) as container:
        tracks = scan(container)
        promised, transport = _promised_ends(path, container), container.format.name == "mpegts"
    undecodable: frozenset[int] = frozenset()
    while True:
        choice = choose_tracks(path, tracks, undecodable)
        _check_tracks(path, choice.tracks, promised)
        numbers, fps = _choose_frames(path, choice.tracks, sampling, span)
        with path.open("rb") as file, open_container(path, file) as container:
            decoded = decode(container, choice.tracks, numbers, _Resizer(sampling).frame, progress)
        failed = {track.stream for track in choice.tracks if _has_failed(track, tracks, undecodable, decoded)}
        if not failed:
            break
        undecodable |= failed
    open_end = (f"{path} has no mark of its end: it may be cut short.",) if has_open_end(path) else ()
    notes = (*choice.notes, *_damage_notes(path, choice.tracks, decoded, transport=transport), *open_end)
    return Media(np.stack(decoded.frames) if decoded.frames else None, _heard(decoded.audio, span), fps, notes)


def _heard(audio: Float[np.ndarray, " samples"] | None, span: Span | None) -> Float[np.ndarray, " samples"] | None:
    """The sound of a part; None if there is none."""
    if audio is None or span is None:
        return audio
    start, end = (round(second * SAMPLE_RATE) for second in span)
    return audio[start:end] if len(audio) > start else None


def _has_failed(track: Track, tracks: Sequence[Track], undecodable: frozenset[int], decoded: Decoded) -> bool:
    """Whether nothing of a track was decoded, or it is damaged and there is another of its kind."""
    if not (decoded.frames if track.kind == "video" else decoded.audio is not None):
        return True
    damage = decoded.damage[track.stream]
    others = [t for t in tracks if t.kind == track.kind and t is not track and fault(t, undecodable) is None]
    return bool(others) and damage.damaged > DAMAGED * damage.packets


def _promised_ends(path: Path, container: InputContainer) -> dict[int, float]:
    """The second at which each track ends by the header, where that is worth something."""
    if container.format.name not in TIMED or is_fragmented(path):
        return {}
    return {
        stream.index: float((stream.duration + (stream.start_time or 0)) * stream.time_base)
        for stream in container.streams
        if stream.duration is not None and stream.time_base is not None
    }


def _check_tracks(path: Path, tracks: Sequence[Track], promised: dict[int, float]) -> None:
    """Refuses a clip that is cut short or too long.

    Raises:
        UserError: it is.
    """
    for track in tracks:
        if promised.get(track.stream, 0.0) - track.end > MISSING:
            raise UserError(
                f"{path} is cut short: its header promises {promised[track.stream]:.1f} s, and it ends after "
                f"{track.end:.1f} s; copy it again, or save what is there as a file of its own (ffmpeg -i {path.name} "
                f"whole{path.suffix})."
            )
    if max(track.end for track in tracks) - min(track.start for track in tracks) > MAX_SECONDS:
        raise UserError(f"{path} is longer than {MAX_SECONDS // 3600} hours; cut out the part that you ask about.")


def _choose_frames(
    path: Path, tracks: Sequence[Track], sampling: Sampling, span: Span | None
) -> tuple[Sequence[int], float]:
    """Numbers of the frames to read, and how many there are a second; asks the model whether it takes the clip."""
    origin = min(track.start for track in tracks)
    start, end = span or (0.0, math.inf)
    last = max(track.end for track in tracks) - origin
    if span is not None and not 0 <= start < min(end, last):
        raise UserError(f"{path} ends after {last:.1f} s, and has no part from second {start:g} to {end:g}.")
    numbers, fps, size, seconds = (), sampling.fps, None, None
    for track in tracks:
        if track.frames is None:
            seconds = max(0.0, min(track.end - origin, end) - start)
        else:
            first, part = _part(track.frames, origin + start, origin + end)
            chosen, fps = _frame_numbers(part, origin + start, sampling)
            numbers, size = [first + number for number in chosen], track.size
    _check(sampling, Outline(len(numbers), size, seconds))
    return numbers, fps


def _part(times: FrameTimes, start: float, end: float) -> tuple[int, FrameTimes]:
    """Number of the frame that is on at a second, and the times from it on until another second."""
    first = max(0, int(np.searchsorted(times.starts, start + JITTER, side="right")) - 1)
    after = max(first + 1, int(np.searchsorted(times.starts, end - JITTER)))
    return first, FrameTimes(times.starts[first:after], min(times.end, end), times.rate)


def _damage_notes(path: Path, tracks: Sequence[Track], decoded: Decoded, *, transport: bool) -> tuple[str, ...]:
    """Sentences about what is damaged, or was not read of a transport stream.

    Raises:
        UserError: it is more than a few packets.
    """
    packets = sum(damage.packets for damage in decoded.damage.values())
    damaged = sum(damage.damaged for damage in decoded.damage.values()) + decoded.broken
    if damaged > DAMAGED * packets:
        raise UserError(f"{path} is damaged: {damaged} of {packets} packets are unreadable; copy it again.")
    notes = []
    if damaged:
        notes.append(f"{damaged} of {packets} packets of {path} are damaged and were skipped.")
    if incomplete := sum(track.incomplete for track in tracks):
        notes.append(f"{incomplete} of {packets} packets of {path} are incomplete: parts were lost on the way.")
    if (parts := max(track.parts for track in tracks)) > 1:
        notes.append(f"{path} is made of {parts} parts, each with a clock of its own; they were put in a row.")
    size = path.stat().st_size
    if transport and size - max(track.position for track in tracks) > max(UNREAD * size, LITTLE):
        notes.append(f"{path} goes on with another program after its first one, which alone was read.")
    return tuple(notes)

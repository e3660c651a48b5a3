"""Reading of clips with PyAV: frames sampled by their timestamps, and sound as 16 kHz mono.

A video is decoded as a stream: only the sampled frames are kept, resized on the way, so that a long clip needs little
memory. A frame is sampled where it is on screen: at time t that is the last frame not later than t, whatever the frame
rate does in between.

What cannot be read is an error in one sentence, not a shorter clip: a file whose header promises more than it holds
is refused, since an answer about half a clip would look like an answer about all of it. Single damaged packets, which
players skip as well, are skipped and told in `Media.notes`.
"""

import glob
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from models.errors import UserError
from models.media.demux import (
    Damage,
    FrameSampler,
    SoundTrack,
    check_riff_size,
    check_whole,
    chosen_streams,
    count_frames,
    decoded,
    open_container,
    start_of,
    to_pixels,
)

Progress = Callable[[float, float | None], None]
"""Called with the seconds decoded so far and the seconds in all (None where unknown)."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
MAX_SECONDS = 3 * 3600


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are read, and at what size.

    Attributes:
        fps: frames per second; a sequence of pictures stands for one every 1 / fps seconds.
        choose: from the number of frames in a video and its frames per second to the numbers of those that are read,
            ascending; None reads one every 1 / fps seconds until the end of the clip.
        size: (height, width) that frames are resized to by FFmpeg, bilinearly; None keeps the first frame's.
        resize: instead of `size`, what makes of a frame as it was filmed one of the size that the model wants.
    """

    fps: float = 1.0
    choose: Callable[[int, float], Sequence[int]] | None = None
    size: tuple[int, int] | None = None
    resize: Callable[[UInt8[np.ndarray, "y x 3"]], UInt8[np.ndarray, "h w 3"]] | None = None


@dataclass(frozen=True)
class Media:
    """A decoded clip.

    Attributes:
        frames: RGB frames, from the start of the clip on; None for sound alone.
        audio: 16 kHz mono in [-1, 1], from the start of the clip; None without a sound track. Its length is what the
            file holds, not exactly 16,000 times the duration of the pictures.
        fps: frames per second of the clip.
        notes: sentences about damage that was skipped.
    """

    frames: UInt8[np.ndarray, "n h w 3"] | None
    audio: Float[np.ndarray, " samples"] | None
    fps: float = 1.0
    notes: tuple[str, ...] = ()


def read_clip(path: str | Path, sampling: Sampling = Sampling(), *, progress: Progress | None = None) -> Media:
    """Reads a video, a sound file, a picture, or a sequence of pictures.

    Args:
        path: a file; or a folder or a glob pattern of pictures, which are taken in the order of the numbers in their
            names.
        sampling: which frames are read, and at what size (large files of large frames need much memory).
        progress: told how far decoding is.

    Raises:
        UserError: there is no such file, it is empty, not a media file, damaged, truncated or longer than three hours.
    """
    if sampling.fps <= 0:
        raise UserError(f"Cannot sample {sampling.fps} frames per second; choose a number above 0, such as 1.")
    path = Path(path)
    pictures = _picture_files(path)
    if pictures:
        return _read_pictures(pictures, sampling, progress)
    check_riff_size(path)
    with path.open("rb") as file, open_container(path, file) as container:
        return _read_container(path, container, sampling, progress)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _picture_files(path: Path) -> list[Path]:
    """Returns the pictures that `path` names, in order; empty if it is another kind of file.

    Raises:
        UserError: there is nothing at `path`.
    """
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES]
        if not files:
            raise UserError(f"The folder {path} holds no pictures (png, jpg, bmp, webp); name a folder that does.")
        return sorted(files, key=_natural)
    if path.is_file():
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy or record it again.")
        return [path] if path.suffix.lower() in PICTURE_SUFFIXES else []
    files = [Path(p) for p in glob.glob(str(path))]
    if path.is_symlink():
        raise UserError(f"{path} is a link to a file that is not there; name the file itself.")
    if not files:
        raise UserError(f"There is no file {path}; check the path.")
    if others := [p for p in files if p.suffix.lower() not in PICTURE_SUFFIXES]:
        raise UserError(f"The pattern {path} also finds {others[0].name}, which is no picture; make it narrower.")
    return sorted(files, key=_natural)


class _Resizer:
    """Frames in one size."""

    def __init__(self, sampling: Sampling) -> None:
        self._size = sampling.size
        self._resize = sampling.resize

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        if self._resize is not None:
            return self._resize(to_pixels(frame, None))
        pixels = to_pixels(frame, self._size)
        self._size = self._size or pixels.shape[:2]
        return pixels


def _read_pictures(files: list[Path], sampling: Sampling, progress: Progress | None) -> Media:
    resize, sampled = _Resizer(sampling), []
    if sampling.choose is not None and len(files) > 1:
        files = [files[number] for number in sampling.choose(len(files), sampling.fps)]
    for file in files:
        with file.open("rb") as opened, open_container(file, opened) as container:
            frame = next(
                (f for f in decoded(container, container.streams.video, Damage()) if isinstance(f, av.VideoFrame)), None
            )
        if frame is None:
            raise UserError(f"The picture {file} is damaged; replace it.")
        sampled.append(resize(frame))
        if progress is not None:
            progress(len(sampled) / sampling.fps, len(files) / sampling.fps)
    return Media(np.stack(sampled), None, sampling.fps)


def _frame_times(
    path: Path, streams: Sequence[Stream], origin: float, sampling: Sampling
) -> tuple[Iterable[float], float]:
    """Times of the frames to read, and their number per second."""
    video = next((stream for stream in streams if isinstance(stream, VideoStream)), None)
    if sampling.choose is None or video is None:
        return (number / sampling.fps for number in itertools.count()), sampling.fps
    rate, total = float(video.average_rate or 0), count_frames(path, video)
    if total == 1 and not rate:  # a GIF of one picture
        rate = sampling.fps
    if rate <= 0 or total <= 0:
        raise UserError(f"{path} does not tell how many pictures it has a second; save it anew, for instance as mp4.")
    chosen, late = sampling.choose(total, rate), (start_of(video) or 0.0) - origin
    return [late + number / rate for number in chosen], len(chosen) * rate / total


def _read_container(path: Path, container: InputContainer, sampling: Sampling, progress: Progress | None) -> Media:
    streams = chosen_streams(container)
    if not streams:
        raise UserError(f"{path} holds neither pictures nor sound; choose another file.")
    origin = min((start for stream in streams if (start := start_of(stream)) is not None), default=0.0)
    times, fps = _frame_times(path, streams, origin, sampling)
    pictures = FrameSampler(times, _Resizer(sampling), all_times=sampling.choose is not None)
    sound, damage = SoundTrack(), Damage()
    total = container.duration / 1e6 if container.duration else None
    for frame in decoded(container, streams, damage):
        time = None if frame.time is None else frame.time - origin
        if time is not None and time > MAX_SECONDS:
            raise UserError(f"{path} is longer than {MAX_SECONDS // 3600} hours; cut out the part that you ask about.")
        if isinstance(frame, av.AudioFrame):
            sound.add(frame, time)
        else:
            pictures.add(frame, time)
        if progress is not None:
            progress(max(pictures.end, sound.end), total)
    pictures.finish()
    wave = sound.finish()
    ends = {"video": pictures.end, "audio": sound.end}
    check_whole(path, container, streams, {kind: end + origin for kind, end in ends.items()}, damage)
    notes = (
        (f"{damage.damaged} of {damage.packets} packets of {path} are damaged and were skipped.",)
        if damage.damaged
        else ()
    )
    return Media(np.stack(pictures.sampled) if pictures.sampled else None, wave, fps, notes=notes)

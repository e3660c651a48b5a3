"""Reading of clips with PyAV: frames sampled by their timestamps, and sound as 16 kHz mono.

A video is decoded as a stream: only the sampled frames are kept, resized on the way, so that a long clip needs little
memory. A frame is sampled where it is on screen: at time t that is the last frame not later than t, whatever the frame
rate does in between. Resizing does not keep the aspect ratio.

What cannot be read is an error in one sentence, not a shorter clip: a file whose header promises more than it holds
is refused, since an answer about half a clip would look like an answer about all of it. Single damaged packets, which
players skip as well, are skipped and told in `Media.notes`.
"""

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Float, UInt8

from models.demux import (
    Damage,
    FrameSampler,
    SoundTrack,
    check_riff_size,
    check_whole,
    chosen_streams,
    decoded,
    open_container,
    to_pixels,
)
from models.errors import UserError

Progress = Callable[[float, float | None], None]
"""Called with the seconds decoded so far and the seconds in all (None where unknown)."""

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
MAX_SECONDS = 3 * 3600


@dataclass(frozen=True)
class Media:
    """A decoded clip.

    Attributes:
        frames: RGB frames, sampled every 1 / fps seconds from the start of the clip; None for sound alone.
        audio: 16 kHz mono in [-1, 1], from the start of the clip; None without a sound track. Its length is what the
            file holds, not exactly 16,000 times the duration of the pictures.
        notes: sentences about damage that was skipped.
    """

    frames: UInt8[np.ndarray, "n h w 3"] | None
    audio: Float[np.ndarray, " samples"] | None
    notes: tuple[str, ...] = ()


def read_clip(
    path: str | Path,
    fps: float = 1.0,
    *,
    size: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Media:
    """Reads a video, a sound file, a picture, or a sequence of pictures.

    Args:
        path: a file; or a folder or a glob pattern of pictures, which are taken in the order of the numbers in their
            names, one every 1 / fps seconds.
        fps: frames sampled per second.
        size: (height, width) of the frames; None keeps the first frame's (large files then need much memory).
        progress: told how far decoding is.

    Raises:
        UserError: there is no such file, it is empty, not a media file, damaged, truncated or longer than three hours.
    """
    if fps <= 0:
        raise UserError(f"Cannot sample {fps} frames per second; choose a number above 0, such as 1.")
    path = Path(path)
    pictures = _picture_files(path)
    if pictures:
        return _read_pictures(pictures, fps, size, progress)
    check_riff_size(path)
    with path.open("rb") as file, open_container(path, file) as container:
        return _read_container(path, container, fps, size, progress)


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
    if not files:
        raise UserError(f"There is no file {path}; check the path.")
    if others := [p for p in files if p.suffix.lower() not in PICTURE_SUFFIXES]:
        raise UserError(f"The pattern {path} also finds {others[0].name}, which is no picture; make it narrower.")
    return sorted(files, key=_natural)


def _read_pictures(files: list[Path], fps: float, size: tuple[int, int] | None, progress: Progress | None) -> Media:
    sampled: list[np.ndarray] = []
    for file in files:
        with file.open("rb") as opened, open_container(file, opened) as container:
            frame = next(
                (f for f in decoded(container, container.streams.video, Damage()) if isinstance(f, av.VideoFrame)), None
            )
        if frame is None:
            raise UserError(f"The picture {file} is damaged; replace it.")
        sampled.append(to_pixels(frame, size))
        size = size or sampled[0].shape[:2]
        if progress is not None:
            progress(len(sampled) / fps, len(files) / fps)
    return Media(np.stack(sampled), None)


def _read_container(
    path: Path, container: InputContainer, fps: float, size: tuple[int, int] | None, progress: Progress | None
) -> Media:
    pictures, sound, damage = FrameSampler(fps, size), SoundTrack(), Damage()
    streams = chosen_streams(container)
    if not streams:
        raise UserError(f"{path} holds neither pictures nor sound; choose another file.")
    starts = [
        float(s.start_time * s.time_base) for s in streams if s.start_time is not None and s.time_base is not None
    ]
    origin = min(starts, default=0.0)
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
    return Media(np.stack(pictures.sampled) if pictures.sampled else None, wave, notes)

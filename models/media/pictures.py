"""Pictures, with Pillow: single files, folders and patterns of them, and animations."""

import functools
import glob
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pi_heif
from jaxtyping import UInt8
from PIL import Image, ImageOps

from models.errors import UserError
from models.media.packets import FrameTimes

Flatten = Callable[[Image.Image], Image.Image]
"""Makes a picture RGB: models differ in what they put behind transparent places."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "HEIF", "AVIF")
SHORT_DELAY, USUAL_DELAY = 0.011, 0.1
"""Seconds: pictures of an animation that claim to be as short as the first are shown for the second, as browsers do."""
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, RuntimeError, EOFError, struct.error, zlib.error)
"""What Pillow and its plugins raise for damaged files."""


def on_white(image: Image.Image) -> Image.Image:
    """A picture as RGB, with white behind transparent places."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB, as Pillow converts it: transparent places show what the file holds there."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise UserError("numbers of 32 bits do not say what is white; save it with 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip 16 bits
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("RGB")


def find_pictures(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures of a folder or a pattern, in the order of the numbers in their names, and notes about other files.

    Raises:
        UserError: there are none.
    """
    if path.is_dir():
        files = [p for p in path.iterdir() if not p.is_dir() and not p.name.startswith(".")]
        pictures = sorted((p for p in files if p.suffix.lower() in SUFFIXES and p.is_file()), key=natural)
        if not pictures:
            raise UserError(
                f"The folder {path} holds no pictures (png, jpg, bmp, webp, gif, tiff, heic, avif); name one that does."
            )
        others = sorted(p.name for p in {*files} - {*pictures})
        note = f"{path} also holds files that are not read as pictures: {', '.join(others[:8])}"
        return pictures, (f"{note}{' and more' if len(others) > 8 else ''}.",) if others else ()
    files = [p for p in map(Path, glob.glob(str(path))) if p.is_file()]
    if not files:
        raise UserError(f"The pattern {path} finds folders only; make it find pictures.")
    if others := [p for p in files if p.suffix.lower() not in SUFFIXES]:
        raise UserError(f"The pattern {path} also finds {others[0].name}, which is no picture; make it narrower.")
    return sorted(files, key=natural), ()


def natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its content or else by its name. A GIF is a clip, and so are JPEGs in a row."""
    if path.suffix.lower() in (".mjpeg", ".mjpg"):
        return False
    with path.open("rb") as file:
        head = file.read(16)
    kind, named = head[4:12], path.suffix.lower() in SUFFIXES - {".gif"}
    return (
        head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (
            kind[4:] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"avif", b"avis")
            if kind[:4] == b"ftyp"
            else named
        )
    )


@functools.cache
def _know_heif() -> None:
    pi_heif.register_heif_opener()


def open_picture(path: Path) -> Image.Image:
    """Opens a picture file, without decoding it.

    Raises:
        UserError: it is damaged, no picture, or too large.
    """
    _know_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which are no attack here, and of odd metadata
            return Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"The picture {path} is too large; scale it down.") from error
    except UNREADABLE as error:
        raise UserError(f"The picture {path} is damaged, or no picture; replace it.") from error


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, before it is turned.

    Raises:
        UserError: it is damaged, no picture, or too large.
    """
    with open_picture(path) as image:
        return image.height, image.width


def read_picture(path: Path, flatten: Flatten) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...]]:
    """Decodes the first picture of a file, turned as it is to be seen; and notes about others.

    Raises:
        UserError: it is damaged, no picture, or too large.
    """
    with open_picture(path) as image:
        count = 1 if image.format == "MPO" else _count(path, image)  # the others of an MPO serve 3D displays
        notes = (f"{path} holds {count} pictures, of which the first was read.",) if count > 1 else ()
        return _pixels(path, image, flatten), notes


def _pixels(path: Path, image: Image.Image, flatten: Flatten) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return np.asarray(flatten(ImageOps.exif_transpose(image)))
    except UserError as error:
        raise UserError(f"The picture {path} cannot be read: {error}.") from error
    except UNREADABLE as error:
        raise _damaged(path) from error


def animation_times(path: Path) -> FrameTimes | None:
    """When the pictures of an animation are on; None for a single picture.

    Raises:
        UserError: the file is damaged, no picture, or too large.
    """
    with open_picture(path) as image:
        if image.format not in ("WEBP", "PNG", "AVIF") or _count(path, image) == 1:
            return None
        ends = np.cumsum([_delay(picture) for picture in _seek_all(path, image)])
    return FrameTimes(np.concatenate([[0.0], ends[:-1]]), float(ends[-1]), len(ends) / float(ends[-1]))


def animation_frames(path: Path, numbers: Sequence[int], flatten: Flatten) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decodes the pictures of an animation that have these numbers, ascending, of which some may repeat.

    Raises:
        UserError: one is damaged.
    """
    with open_picture(path) as image:
        pixels = None
        for number in numbers:
            if pixels is None or number != image.tell():
                _seek(path, image, number)
                pixels = _pixels(path, image, flatten)
            yield pixels


def _count(path: Path, image: Image.Image) -> int:
    """How many pictures a file holds; of some kinds it says so only after all of it was looked through."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(image, "n_frames", 1)
    except UNREADABLE as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"The picture {path} is damaged or cut short; replace it.")


def _delay(image: Image.Image) -> float:
    seconds = image.info.get("duration", 0) / 1000
    return seconds if seconds >= SHORT_DELAY else USUAL_DELAY


def _seek_all(path: Path, image: Image.Image) -> Iterator[Image.Image]:
    for number in range(_count(path, image)):
        _seek(path, image, number)
        yield image


def _seek(path: Path, image: Image.Image, number: int) -> None:
    try:
        image.seek(number)
        image.load()  # which tells how long it is on
    except UNREADABLE as error:
        raise _damaged(path) from error

"""Encoder features kept on disk: the encoders are frozen, so every picture and every soundtrack is encoded once."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from models.hub.package_index import cache_root
from models.hub.weights import ASSETS
from models.media.resize import resize_bilinear
from models.smolav.encoders import FRAME_SIZE, Encoders
from train.data.clips import Clip, ClipConfig, clip_at
from train.data.sources import Sources, cifar10, load_sources

CHUNK = 32  # rows between two writes


class Rows:
    """Float16 rows on disk with a flag for each that is there, so that a killed run resumes where it was."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        """Opens or creates the file `name` for rows of `shape[1:]`."""
        folder = cache_root() / "features"
        folder.mkdir(parents=True, exist_ok=True)
        size = "x".join(map(str, shape))
        self.data = _memmap(folder / f"{name}-{size}.npy", np.float16, shape)
        self.done = _memmap(folder / f"{name}-{size}.done.npy", np.bool_, shape[:1])

    def missing(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `rows` that are not there yet, each once, in order."""
        wanted = np.unique(np.asarray(rows, np.int64))
        return wanted[~self.done[wanted]]

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Stores rows; their flags are set after the data have reached the file."""
        self.data[rows] = values
        self.data.flush()
        self.done[rows] = True
        self.done.flush()


def _memmap(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}.partial")  # another process may do the same
        np.lib.format.open_memmap(partial, "w+", dtype, shape).flush()
        partial.replace(path)
    return np.lib.format.open_memmap(path, "r+")


class PictureFeatures:
    """Encoded pictures of one split, each encoded when it is first asked for."""

    def __init__(self, split: str, encoders: Encoders) -> None:
        pictures = cifar10.load(split)
        self.images, self.encoders = pictures.images, encoders
        shape = (len(pictures.images), encoders.config.frame_tokens, encoders.config.video_width)
        self.rows = Rows(f"cifar10-{split}-{_key('efficientnet-lite0')}", shape)

    def take(self, pictures: Sequence[int] | np.ndarray) -> Float[np.ndarray, "F P W"]:
        """Features [n, 16, 320] of pictures."""
        wanted = np.asarray(pictures, np.int64)
        missing = self.rows.missing(wanted)
        for chunk in (missing[i : i + CHUNK] for i in range(0, len(missing), CHUNK)):
            self.rows.put(chunk, self.encoders.frames(resize_bilinear(self.images[chunk], FRAME_SIZE, FRAME_SIZE)))
        return np.asarray(self.rows.data[wanted], np.float32)


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """A numbered list of composed clips whose soundtracks are encoded ahead.

    Attributes:
        clips: how the clips are composed.
        count: how many.
        seed: names the list.
        split: split of the sources.
    """

    clips: ClipConfig
    count: int
    seed: int
    split: str = "train"


class ClipPool:
    """The clips of a pool and their audio tokens, each encoded when it is first asked for."""

    def __init__(self, config: PoolConfig, sources: Sources, encoders: Encoders) -> None:
        self.config, self.sources, self.encoders = config, sources, encoders
        name = f"audio-{config.split}-{_key('whisper-tiny-en', (config.clips, config.seed))}"
        self.rate = encoders.config.audio_rate
        self.rows = Rows(name, (config.count, config.clips.seconds[1] * self.rate, encoders.config.audio_width))

    def clip(self, index: int) -> Clip:
        """Clip number `index`."""
        return clip_at(self.config.seed, index, self.sources, self.config.clips)

    def audio(self, index: int) -> Float[np.ndarray, "A W"]:
        """Audio tokens of clip `index`."""
        clip = self.clip(index)
        if len(self.rows.missing([index])):
            tokens = self.encoders.audio(clip.audio(self.sources))
            row = np.zeros(self.rows.data.shape[1:], np.float32)
            row[: len(tokens)] = tokens
            self.rows.put(np.array([index]), row[None])
        return np.asarray(self.rows.data[index, : clip.seconds * self.rate], np.float32)


def sources_for(split: str, pictures: int | None = None) -> Sources:
    """The split's sources, with only the first `pictures` pictures if that is given (each costs 10 ms to encode)."""
    sources = load_sources(split)
    return dataclasses.replace(sources, picture_labels=sources.picture_labels[:pictures])


def _key(asset: str, extra: object = "") -> str:
    """Changes whenever the encoder's weights or what is encoded change."""
    return hashlib.sha256(f"{ASSETS[asset].sha256} {extra!r}".encode()).hexdigest()[:16]

"""Results of the loaders: pictures and sounds, one split at a time, and how instances are dealt to splits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.media.waveform import to_float

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split.

    Attributes:
        images: uint8 RGB, [n, h, w, 3]; a picture's id is its row here.
        labels: class of each picture, an index into `names`.
        names: the classes' names, one word each.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Sounds:
    """Recordings of one split, 16 kHz mono, end to end in one array so that they pickle and load quickly.

    Attributes:
        samples: int16, all recordings one after the other.
        offsets: where each recording starts, and the end of the last.
        labels: class of each recording, an index into `names`.
        names: the classes' names, one word each.
        keys: where each recording comes from, for reports and for checks that splits are disjoint.
    """

    samples: Int[np.ndarray, " total"]
    offsets: Int[np.ndarray, " n+1"]
    labels: Int[np.ndarray, " n"]
    names: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of samples of each recording."""
        return np.diff(self.offsets)

    def waveform(self, index: int) -> Float[np.ndarray, " samples"]:
        """Returns recording `index` as float32 with its peak at 1."""
        samples = to_float(self.samples[self.offsets[index] : self.offsets[index + 1]])
        return samples / max(float(np.abs(samples).max()), 1e-6)

    def pick(self, indices: Sequence[int] | np.ndarray) -> "Sounds":
        """Returns the recordings at `indices` alone, in that order."""
        return join_sounds(
            [self.samples[self.offsets[i] : self.offsets[i + 1]] for i in indices],
            [int(self.labels[i]) for i in indices],
            self.names,
            [self.keys[i] for i in indices],
        )


def join_sounds(
    recordings: Sequence[np.ndarray], labels: Sequence[int], names: Sequence[str], keys: Sequence[str]
) -> Sounds:
    """Builds Sounds from single int16 recordings at 16 kHz."""
    return Sounds(
        samples=np.concatenate(recordings) if len(recordings) else np.zeros(0, np.int16),
        offsets=np.concatenate([[0], np.cumsum([len(r) for r in recordings])]).astype(np.int64),
        labels=np.asarray(labels, np.int64),
        names=tuple(names),
        keys=tuple(keys),
    )


@dataclass(frozen=True)
class Sources:
    """Everything that composing clips of one split needs; pictures' pixels are left out so that workers stay small.

    Attributes:
        picture_labels: class of each picture id.
        picture_names: names of the picture classes.
        digits: recordings of spoken digits.
        instruments: recordings of single notes.
    """

    picture_labels: Int[np.ndarray, " n"]
    picture_names: tuple[str, ...]
    digits: Sounds
    instruments: Sounds


def check_split(split: str) -> None:
    """Raises ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")

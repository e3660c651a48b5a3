"""Real single items (pictures, spoken digits, instrument notes), split by source instance."""

from train.data.sources import cifar10, digits, instruments
from train.data.sources.items import SPLITS, Pictures, Sounds, Sources


def load_sources(split: str) -> Sources:
    """Loads what composing clips of a split needs; `cifar10.load(split).images` are the pictures themselves."""
    pictures = cifar10.load(split)
    return Sources(pictures.labels, pictures.names, digits.load(split), instruments.load(split))


__all__ = ["SPLITS", "Pictures", "Sounds", "Sources", "cifar10", "digits", "instruments", "load_sources"]

"""What picture classifiers have in common: their outputs, their stems, and how Hugging Face stores them."""

from typing import NamedTuple

from jaxtyping import Array, Float

from models.errors import UserError
from models.hf.config import Section
from models.hf.tensors import Path, Tensors, batch_norm, conv

STEMS = ("cifar", "imagenet")
HF_LABELS = 2
"""Classes where a config.json names none."""
HF_COUNTERS = "*.num_batches_tracked"
"""Tensors of checkpoints that nothing here reads."""


class Outputs(NamedTuple):
    """Of a batch of pictures.

    Attributes:
        logits: of the classes.
        features: what the last dense layer reads.
    """

    logits: Float[Array, "B C"]
    features: Float[Array, "B D"]


def check_stem(stem: str) -> None:
    """Whether there is such a stem.

    Raises:
        UserError: if not.
    """
    if stem not in STEMS:
        raise UserError(f"There is no stem {stem!r}; take one of {', '.join(STEMS)}.")


def hf_classes(section: Section) -> int:
    """Number of classes that a config.json names."""
    return len(section.get("id2label", dict, {})) or HF_LABELS


def hf_normed_conv(name: str, path: Path) -> Tensors:
    """A convolution and its batch normalisation, by the names that transformers gives them."""
    return conv(f"{name}.convolution", (*path, "conv"), 2) | batch_norm(f"{name}.normalization", (*path, "norm"))

"""Random crop, flip and rotation of small pictures on the device, and normalisation.

The recipe of MergeNet's authors for CIFAR-100 (Fantasylii/mergenet, `dataset/cls_dataloader.py`), which is that of
weiaicunzai/pytorch-cifar100: crop 32 out of a black border of 4, mirror half of the pictures, rotate by up to 15
degrees about the middle. A pixel is the nearest one of the original and black outside it, torchvision's default.
The three steps are one lookup per pixel, so that nothing is sampled twice.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from models.errors import UserError

HALF_TURN = 180


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a data set's pixels per colour, 0 being black and 1 white."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "n h w 3"]) -> "Statistics":
        """Measures pictures: over all pixels of all of them."""
        counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]) / images[..., 0].size
        levels = np.arange(256) / 255
        mean = counts @ levels
        std = np.sqrt(np.sum(counts * np.square(levels - mean[:, None]), axis=-1))
        red, green, blue = zip(mean.tolist(), std.tolist(), strict=True)
        return cls((red[0], green[0], blue[0]), (red[1], green[1], blue[1]))


STATISTICS: dict[str, Statistics] = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Statistics((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Of the 50,000 official training pictures."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How far pictures may be changed.

    Attributes:
        padding: width of the black border from which a picture of the old size is cut, in pixels.
        mirrored: probability that left and right are exchanged.
        degrees: largest rotation to either side.
    """

    padding: int = 4
    mirrored: float = 0.5
    degrees: float = 15.0

    def __post_init__(self) -> None:
        if self.padding < 0 or not 0 <= self.degrees <= HALF_TURN or not 0 <= self.mirrored <= 1:
            raise UserError(
                f"Padding must be 0 or more, degrees between 0 and {HALF_TURN} and mirrored a probability, not "
                f"{self.padding}, {self.degrees} and {self.mirrored}."
            )


class Changes(NamedTuple):
    """The changes of each picture of a batch.

    Attributes:
        shift: where the cut begins, less the border: pixels down and to the right.
        mirrored: whether left and right are exchanged, after the cut.
        angle: rotation to the left, after that, in radians.
    """

    shift: Int[Array, "B 2"]
    mirrored: Bool[Array, " B"]
    angle: Float[Array, " B"]


def draw(key: Key[Array, ""], count: int, augmentation: Augmentation) -> Changes:
    """Random changes of `count` pictures."""
    shift, mirrored, angle = jax.random.split(key, 3)
    widest = math.radians(augmentation.degrees)
    return Changes(
        jax.random.randint(shift, (count, 2), -augmentation.padding, augmentation.padding + 1),
        jax.random.bernoulli(mirrored, augmentation.mirrored, (count,)),
        jax.random.uniform(angle, (count,), jnp.float32, -widest, widest),
    )


def change(images: UInt8[Array, "B Y X 3"], changes: Changes) -> UInt8[Array, "B Y X 3"]:
    """Shifts, mirrors and rotates pictures; what comes from outside a picture is black."""
    rows, height, width, colours = images.shape
    # Middles of the pixels, from the middle of the picture; a picture's rows point down.
    y, x = (jnp.arange(n, dtype=jnp.float32) + 0.5 - n / 2 for n in (height, width))
    y, x = y[None, :, None], x[None, None, :]
    cos, sin = (f(changes.angle)[:, None, None] for f in (jnp.cos, jnp.sin))
    row = jnp.floor(sin * x + cos * y + height / 2).astype(jnp.int32)
    column = jnp.floor(cos * x - sin * y + width / 2).astype(jnp.int32)
    inside = _within(row, height) & _within(column, width)
    column = jnp.where(changes.mirrored[:, None, None], width - 1 - column, column)
    row, column = row + changes.shift[:, 0, None, None], column + changes.shift[:, 1, None, None]
    inside &= _within(row, height) & _within(column, width)
    pixel = jnp.where(inside, row * width + column, 0).reshape(rows, -1, 1)
    found = jnp.take_along_axis(images.reshape(rows, -1, colours), pixel, axis=1).reshape(images.shape)
    return jnp.where(inside[..., None], found, jnp.uint8(0))


def normalise(images: UInt8[Array, "B Y X 3"], statistics: Statistics) -> Float[Array, "B Y X 3"]:
    """Pixels in units of the data set's standard deviation about its mean, float32."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None, :] for x in (statistics.mean, statistics.std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def augment(
    images: UInt8[Array, "B Y X 3"], key: Key[Array, ""], statistics: Statistics, augmentation: Augmentation
) -> Float[Array, "B Y X 3"]:
    """Changes every picture in its own random way and normalises it.

    The key alone decides. Runs inside jit, and under vmap over keys, pictures or both.
    """
    return normalise(change(images, draw(key, len(images), augmentation)), statistics)


def _within(index: Int[Array, "B Y X"], size: int) -> Bool[Array, "B Y X"]:
    return (index >= 0) & (index < size)

"""Kernels that start as another model's: evenly spaced channels (weight selection, arXiv 2311.18823)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mergenet_jax.views import Layout, to_kernel, to_matrix

TINY = 1e-12


def spatial(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """Height and width of a convolution's kernel; nothing of a dense one's, or of one that is 1 x 1."""
    sizes = shape[2:] if layout == "out_in" else shape[:-2]
    return sizes if math.prod(sizes) > 1 else ()


def select(
    target: Float[Array, "..."],
    source: Float[Array, "..."],
    target_layout: Layout,
    source_layout: Layout,
) -> Float[Array, "..."]:
    """The target's kernel with the source's values.

    Where the source has more outputs or inputs, evenly spaced ones are taken; where the target has more, evenly spaced
    ones are given and the others stay as they are. What is given is scaled to the root mean square of the target's
    kernel. A source of zeros gives nothing, nor one whose root mean square is not finite.

    Args:
        target: kernel.
        source: kernel of the same height and width.
        target_layout: where the kernel has its outputs.
        source_layout: where the source's kernel has them.
    """
    taps = math.prod(spatial(target.shape, target_layout))
    matrix, theirs = to_matrix(target, target_layout), to_matrix(source, source_layout)
    ours, theirs = (x.reshape(len(x), -1, taps) for x in (matrix, theirs))
    rows, columns = (_spaced(ours.shape[axis], theirs.shape[axis]) for axis in (0, 1))
    given = theirs[rows[1][:, None], columns[1][None]]
    size, wanted = (jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))) for x in (given, ours))
    given = (given.astype(jnp.float32) * (wanted / jnp.maximum(size, TINY))).astype(ours.dtype)
    usable = (size > 0) & jnp.isfinite(size)
    there = ours[rows[0][:, None], columns[0][None]]
    new = jnp.asarray(ours).at[rows[0][:, None], columns[0][None]].set(jnp.where(usable, given, there))
    return to_kernel(new.reshape(matrix.shape), target.shape, target_layout)


def _spaced(ours: int, theirs: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the channels that are given to, and of those that are taken."""
    numbers = np.arange(min(ours, theirs))
    return numbers * ours // len(numbers), numbers * theirs // len(numbers)

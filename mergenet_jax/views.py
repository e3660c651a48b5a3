"""Kernels as matrices [out, in], whose rows are output units."""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

Layout = Literal["in_out", "out_in"]
"""Where a kernel has its outputs: last, as Flax ([in, out], [height, width, in, out]), or first, as torch."""


def _order(rank: int, layout: Layout) -> tuple[int, ...]:
    if layout == "out_in":
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))


def matrix_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    """Shape of the matrix of a kernel.

    Raises:
        ValueError: if the kernel has fewer than two axes, or none of some size.
    """
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"a parameter of shape {shape} is no matrix: give a kernel of two or more axes.")
    order = _order(len(shape), layout)
    size = 1
    for axis in order[1:]:
        size *= shape[axis]
    return shape[order[0]], size


def to_matrix(kernel: Float[Array, "..."], layout: Layout) -> Float[Array, "m n"]:
    """The kernel as [out, in]; of a k x k convolution as [out, in * k * k]."""
    return kernel.transpose(_order(kernel.ndim, layout)).reshape(matrix_shape(kernel.shape, layout))


def to_kernel(matrix: Float[Array, "m n"], shape: tuple[int, ...], layout: Layout) -> Float[Array, "..."]:
    """The inverse of `to_matrix`, for a kernel of a shape."""
    order = _order(len(shape), layout)
    return matrix.reshape([shape[axis] for axis in order]).transpose(np.argsort(order).tolist())


def shape_of(leaf: jax.Array | jax.ShapeDtypeStruct, layout: Layout) -> tuple[int, int]:
    """`matrix_shape` of a leaf."""
    return matrix_shape(tuple(leaf.shape), layout)

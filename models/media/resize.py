"""Resizing of pictures in NumPy: separable kernels with half-pixel centres, widened when shrinking (no aliasing)."""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

BAND = 32  # outputs at a time: together they read few inputs, so that the rest of a row is not multiplied by zeros


def triangle(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Kernel of bilinear interpolation."""
    return np.maximum(0.0, 1.0 - np.abs(x))


def cubic(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Kernel of bicubic interpolation with a = -1/2 (Keys 1981)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def kernel_matrix(old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray]) -> Float[np.ndarray, "new old"]:
    """Weights of a one-dimensional resize; each row sums to 1."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = kernel((np.arange(old)[None, :] - centres[:, None]) / max(old / new, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def resize_bilinear(
    images: UInt8[np.ndarray, "n h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "n height width 3"]:
    """Resizes RGB pictures to height x width, without keeping the aspect ratio."""
    rows = kernel_matrix(images.shape[1], height, triangle).astype(np.float32)
    columns = kernel_matrix(images.shape[2], width, triangle).astype(np.float32)
    floats = np.tensordot(images.astype(np.float32), rows, axes=(1, 1))  # [n, w, 3, height]
    floats = np.tensordot(floats, columns, axes=(1, 1))  # [n, 3, height, width]
    return np.clip(np.round(floats.transpose(0, 2, 3, 1)), 0, 255).astype(np.uint8)


def resize_bicubic(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes one RGB picture to height x width, without keeping the aspect ratio, as torch resizes bytes.

    That is, with antialiasing: columns first, with weights of 16 bits, and rounded to bytes after either pass.
    """
    if image.shape[:2] == (height, width):
        return image
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32)
    wide = _bytes(planes, _fixed_point(image.shape[1], width))
    tall = _bytes(wide.swapaxes(1, 2), _fixed_point(image.shape[0], height))
    return np.ascontiguousarray(tall.transpose(2, 1, 0).astype(np.uint8))


@functools.lru_cache(maxsize=8)
def _fixed_point(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Bicubic weights in as many binary places as a signed 16-bit integer holds of the largest one."""
    weights = kernel_matrix(old, new, cubic)
    places = min(22, int(np.log2((2**15 - 0.5) / weights.max())))
    return (np.trunc(weights * 2.0**places + np.copysign(0.5, weights)) / 2.0**places).astype(np.float32)


def _bytes(x: Float[np.ndarray, "c a old"], weights: Float[np.ndarray, "new old"]) -> Float[np.ndarray, "c a new"]:
    """Resizes the last axis, to whole numbers from 0 to 255."""
    out = np.empty((*x.shape[:2], len(weights)), np.float32)
    for start in range(0, len(weights), BAND):
        band = weights[start : start + BAND]
        used = np.flatnonzero(band.any(axis=0))
        inputs = slice(used[0], used[-1] + 1)
        out[:, :, start : start + BAND] = x[:, :, inputs] @ band[:, inputs].T
    return np.clip(np.floor(out + np.float32(0.5)), 0, 255)

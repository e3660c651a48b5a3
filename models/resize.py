"""Resizing of pictures in NumPy."""

import numpy as np
from jaxtyping import Float, UInt8


def bilinear_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Weights of a 1-D bilinear resize with half-pixel centres; widened when shrinking, so that nothing aliases."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old)[None, :] - centres[:, None]) / scale)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize_bilinear(
    images: UInt8[np.ndarray, "n h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "n height width 3"]:
    """Resizes RGB pictures to height x width, without keeping the aspect ratio."""
    rows = bilinear_matrix(images.shape[1], height)
    columns = bilinear_matrix(images.shape[2], width)
    floats = np.tensordot(images.astype(np.float32), rows, axes=(1, 1))  # [n, w, 3, height]
    floats = np.tensordot(floats, columns, axes=(1, 1))  # [n, 3, height, width]
    return np.clip(np.round(floats.transpose(0, 2, 3, 1)), 0, 255).astype(np.uint8)

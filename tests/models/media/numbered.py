"""Frames that carry their number, so that a test can read which ones a model gets."""

import numpy as np

ROWS, COLUMNS = 3, 4


def frame(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A picture with the bits of a number as dark and light squares."""
    bits = np.array([number >> bit & 1 for bit in range(ROWS * COLUMNS)]).reshape(ROWS, COLUMNS)
    grey = np.where(bits, 235, 20).astype(np.uint8)
    rows, columns = np.arange(height) * ROWS // height, np.arange(width) * COLUMNS // width
    return np.repeat(grey[rows][:, columns][:, :, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number that a picture carries."""
    height, width = picture.shape[:2]
    rows, columns = ((2 * np.arange(n) + 1) * side // (2 * n) for n, side in ((ROWS, height), (COLUMNS, width)))
    bits = picture[rows][:, columns].mean(axis=2).ravel() > 127
    return int((bits << np.arange(ROWS * COLUMNS)).sum())


def numbers_of(frames: np.ndarray | None) -> list[int]:
    """The numbers that frames carry."""
    return [] if frames is None else [number_of(frame) for frame in frames]

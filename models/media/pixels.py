"""Decoded video frames as arrays, the way up that their file says."""

import av
import numpy as np
from av.video.reformatter import Interpolation
from jaxtyping import Int, UInt8


def to_pixels(frame: av.VideoFrame, size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a frame to RGB of (height, width) `size`, turned and mirrored as its metadata says."""
    matrix = display_matrix(frame)
    if size is not None:
        height, width = size[::-1] if is_turned(matrix) else size
        frame = frame.reformat(width, height, "rgb24", interpolation=Interpolation.BILINEAR)
    return oriented(frame.to_ndarray(format="rgb24"), matrix)


def display_matrix(frame: av.VideoFrame) -> Int[np.ndarray, "3 3"] | None:
    """The matrix that maps a frame's places to those on screen (ISO 14496-12, 6.2.2), if the file has one."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3)


def is_turned(matrix: Int[np.ndarray, "3 3"] | None) -> bool:
    """Whether rows become columns."""
    return matrix is not None and abs(int(matrix[0, 1])) > abs(int(matrix[0, 0]))


def oriented(pixels: UInt8[np.ndarray, "y x 3"], matrix: Int[np.ndarray, "3 3"] | None) -> UInt8[np.ndarray, "h w 3"]:
    """A frame turned by the next quarter, and mirrored, as its matrix says."""
    if matrix is None:
        return pixels
    if is_turned(matrix):
        pixels, across, down = pixels.swapaxes(0, 1), matrix[1, 0], matrix[0, 1]
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])

"""TMRoPE (arXiv 2503.20215, section 2.2): rotary positions of media tokens on the axes time, height and width.

Everything here counts from 0, the first token of the item; a prompt adds where the item starts, on all three axes.
Checkpoints were trained with these very rounding rules, so single precision stays single precision.
"""

import numpy as np
from jaxtyping import Float, Int


def audio_tokens(mel_frames: int) -> int:
    """Tokens that the audio tower makes of mel frames: a convolution of stride 2, then pairs averaged; 25 a second."""
    return ((mel_frames - 1) // 2 + 1 - 2) // 2 + 1


def grid_times(frames: int, seconds_per_grid: float, per_second: int) -> Int[np.ndarray, " t"]:
    """Time positions of a video's grids, rounded down, in single precision: uneven where the frame rate is."""
    seconds = np.arange(frames, dtype=np.float32) * np.float32(seconds_per_grid)
    return (seconds * np.float32(per_second)).astype(np.int32)


def grid_positions(times: Int[np.ndarray, " t"], height: int, width: int) -> Int[np.ndarray, "3 n"]:
    """Positions of t * height * width tokens in reading order."""
    t, h, w = np.meshgrid(times, np.arange(height), np.arange(width), indexing="ij")
    return np.stack([t, h, w]).reshape(3, -1).astype(np.int32)


def line_positions(tokens: int) -> Int[np.ndarray, "3 n"]:
    """Positions of text and sound: one after the other, the same on all axes."""
    return np.tile(np.arange(tokens, dtype=np.int32), (3, 1))


def chunk_numbers(times: Int[np.ndarray, " n"] | Float[np.ndarray, " n"], per_chunk: int) -> Int[np.ndarray, " n"]:
    """Which chunk each token of an item belongs to.

    Chunk k begins at the first token whose time is at least k * per_chunk, and at least one token after chunk k - 1
    began. So where grids are further apart than a chunk is long, the tokens of one grid fall into several chunks: the
    checkpoints know it so.

    Args:
        times: of the tokens, never falling.
        per_chunk: length of a chunk, in the unit of `times`.
    """
    number = np.arange(1, int(times[-1] // per_chunk) + 1)
    first = np.searchsorted(times, number * per_chunk)
    starts = np.maximum.accumulate(first - number) + number
    return np.searchsorted(starts, np.arange(len(times)), side="right").astype(np.int32)

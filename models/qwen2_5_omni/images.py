"""Pictures and videos as Qwen2.5-Omni's vision tower takes them, from bytes, in NumPy.

A clip stays bytes, of the size that the tower sees, until it is cut into patches some frames at a time.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from models.errors import UserError
from models.qwen2_5_omni.config import VisionConfig

PICTURE_PIXELS = (56 * 56, 16384 * 28 * 28)
"""Fewest and most pixels of a picture, as the published preprocessor_config.json has them."""
FRAME_PIXELS = (128 * 28 * 28, 768 * 28 * 28)
"""Fewest and most pixels of a video's frame."""
CLIP_PIXELS = int(0.9 * 128_000 * 28 * 28)
"""Most pixels of all the pairs of frames of a video."""
FPS = 2.0
"""Frames per second of a video that are used."""
FRAMES = (4, 768)
"""Fewest and most frames of a video."""
LONGEST = 200
"""Most times that the longer side of a picture may hold the shorter."""
# Statistics of CLIP's training pictures, in units of bytes.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32) * 255
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32) * 255


def fitted_size(height: int, width: int, pixels: tuple[int, int], factor: int) -> tuple[int, int]:
    """The (height, width) that a picture is resized to: multiples of `factor`, of nearly the same aspect ratio.

    Args:
        height: of the picture.
        width: of the picture.
        pixels: fewest and most pixels of the result.
        factor: side of a merge unit in pixels.

    Raises:
        UserError: if the picture is too long and narrow.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise UserError(f"A picture of {width} x {height} pixels is too narrow for its length; crop it to 1:{LONGEST}.")
    least, most = pixels
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor**2 > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif rows * columns * factor**2 < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor


def frame_pixels(frames: int) -> tuple[int, int]:
    """Fewest and most pixels of each of so many frames, so that long videos stay within the context."""
    least, most = FRAME_PIXELS
    return least, max(min(most, 2 * CLIP_PIXELS // frames), int(1.05 * least))


def number_of_frames(total: int, rate: float) -> int:
    """How many frames of a video are used: an even number, unless it has only one.

    Args:
        total: frames in the video.
        rate: its frames per second.
    """
    if total < 2:
        return total
    least, most = FRAMES
    return int(min(max(total / rate * FPS, least), most, total)) // 2 * 2


def spread_frames(total: int, number: int) -> Int[np.ndarray, " number"]:
    """Numbers of the frames used, from the first to the last one, as Qwen's own qwen-omni-utils chooses them."""
    return np.rint(np.linspace(0, total - 1, number)).astype(np.int64)


def patch_grid(shape: tuple[int, ...], config: VisionConfig) -> tuple[int, int, int]:
    """(t, height, width) in patches of resized frames of a shape [n, y, x, 3]."""
    return -(-shape[0] // config.temporal_patch_size), shape[1] // config.patch_size, shape[2] // config.patch_size


def patchify(frames: UInt8[np.ndarray, "n height width 3"], config: VisionConfig) -> Float[np.ndarray, "T P V"]:
    """Normalised patches of resized frames: T temporal patches of P patches of V values.

    The patches of a merge unit stand together, units row by row; the values of a patch by channel, frame, row and
    column. A picture is a video of one frame; missing frames repeat the last one.
    """
    pair, side, merge = config.temporal_patch_size, config.patch_size, config.spatial_merge_size
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % pair, axis=0)])
    times, height, width = patch_grid(frames.shape, config)
    values = (frames.astype(np.float32) - MEAN) / STD
    cells = values.reshape(times, pair, height // merge, merge, side, width // merge, merge, side, 3)
    patches = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return patches.reshape(times, height * width, 3 * pair * side * side)


def batches(
    frames: UInt8[np.ndarray, "n height width 3"], config: VisionConfig, size: int
) -> Iterator[Float[np.ndarray, "size P V"]]:
    """Patches of a video, `size` temporal patches at a time; zeros fill the last batch."""
    step = size * config.temporal_patch_size
    for start in range(0, len(frames), step):
        patches = patchify(frames[start : start + step], config)
        yield np.pad(patches, ((0, size - len(patches)), (0, 0), (0, 0)))

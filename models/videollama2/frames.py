"""Which frames of a clip VideoLLaMA2.1 sees."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from models.media.clip import Media, Progress, Sampling, Span, read_clip
from models.media.pictures import to_rgb
from models.media.resize import resize_bicubic
from models.videollama2.preprocess import frame_numbers


def load_clip(clip: Path, side: int, count: int, progress: Progress | None = None, span: Span | None = None) -> Media:
    """Decodes a clip: frames spread evenly, as squares whatever their form, and all of the sound.

    Args:
        clip: the file, or a folder or pattern of pictures.
        side: of the squares, in pixels.
        count: how many frames are seen of a clip of more than one picture.
        progress: called with how far decoding is.
        span: the part of the clip that is read; None reads all of it.

    Raises:
        UserError: it cannot be read.
    """

    def square(frame: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "h w 3"]:
        return resize_bicubic(frame, side, side)

    def choose(frames: int, fps: float) -> list[int]:
        return frame_numbers(frames, count).tolist()

    sampling = Sampling(choose=choose, resize=square, flatten=to_rgb)
    return read_clip(clip, sampling, span=span, progress=progress)

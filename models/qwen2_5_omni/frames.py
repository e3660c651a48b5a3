"""Which frames of a clip Qwen2.5-Omni sees, of what size, and which clips are too long for it."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from models.media.clip import Media, Outline, Progress, Sampling, Span, check_tokens, read_clip
from models.media.pictures import on_white, to_rgb
from models.media.resize import resize_bicubic
from models.media.waveform import SAMPLE_RATE
from models.qwen2_5_omni import images
from models.qwen2_5_omni.config import VisionConfig
from models.qwen2_5_omni.positions import audio_tokens
from models.qwen2_5_omni.sound import LONGEST, check_length, mel_frames

PADDING = 0.25  # seconds by which codecs may make sound longer than what was recorded: an AAC file of 300 s has 300.03


def flatten(image: Image.Image) -> Image.Image:
    """A picture as RGB, as qwen-omni-utils makes it: white behind an alpha channel, but not behind a palette's."""
    return on_white(image) if image.mode == "RGBA" else to_rgb(image)


class ClipFrames:
    """Chooses the frames of one clip, and their size, and refuses what is too long; for one reading of it.

    Attributes:
        fps: frames per second that their times are reckoned with: the nominal rate, as the model was trained (a clip of
            5.3 s has 10 frames at 2 a second), unless the clip is too short or too long for it, or has fewer frames.
    """

    def __init__(self, config: VisionConfig, max_context: int | None = None) -> None:
        self.fps = images.FPS
        self._config = config
        self._max_context = max_context
        self._pixels = images.PICTURE_PIXELS
        self._size: tuple[int, int] | None = None

    def load_clip(self, clip: Path, progress: Progress | None = None, span: Span | None = None) -> Media:
        """Decodes a clip, or a part of it: two frames per second, of a size that depends on how many there are.

        Raises:
            UserError: it cannot be read, or is too long.
        """
        sampling = Sampling(
            images.FPS,
            self.choose,
            self.choose_pictures,
            resize=self.resize,
            flatten=flatten,
            accept=self.accept,
        )
        media = read_clip(clip, sampling, span=span, progress=progress)
        heard = None if media.audio is None else media.audio[: LONGEST * SAMPLE_RATE]
        return dataclasses.replace(media, audio=heard, fps=self.fps)

    def choose(self, total: int, rate: float) -> list[int]:
        """Numbers of the frames that are read, of `total` frames at `rate` per second."""
        number = images.number_of_frames(total, rate)
        if number > 1:
            self._pixels = images.frame_pixels(number)
        if rate < images.FPS or not images.FRAMES[0] <= total / rate * images.FPS < images.FRAMES[1] + 2:
            self.fps = number * rate / total
        return images.spread_frames(total, number).tolist()

    def choose_pictures(self, total: int) -> list[int]:
        """Numbers of the pictures that are read: all of a sequence, the last one twice if their number is odd.

        Of more than the model sees of a video, as many as that, evenly spread.
        """
        most = images.FRAMES[1]
        numbers = [*range(total), *[total - 1] * (total % 2)]
        if total > most:
            numbers = images.spread_frames(total, most).tolist()
        self._pixels = images.frame_pixels(len(numbers))
        return numbers

    def accept(self, outline: Outline) -> None:
        """Refuses a clip that is longer than the model hears, or makes more tokens than it reads.

        Raises:
            UserError: if so.
        """
        tokens = 0
        if outline.seconds is not None:
            if outline.seconds > LONGEST + PADDING:
                check_length(outline.seconds)
            tokens += max(0, audio_tokens(mel_frames(min(outline.seconds, LONGEST))))
        if outline.frames and outline.size is not None:
            height, width = images.fitted_size(*outline.size, self._pixels, self._unit)
            pairs = -(-outline.frames // self._config.temporal_patch_size)
            tokens += pairs * (height // self._unit) * (width // self._unit)
        if self._max_context is not None:
            check_tokens(tokens, self._max_context, "Qwen2.5-Omni")

    @property
    def _unit(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self._config.patch_size * self._config.spatial_merge_size

    def resize(self, pixels: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A frame in the size that the first one was given."""
        self._size = self._size or images.fitted_size(pixels.shape[0], pixels.shape[1], self._pixels, self._unit)
        return resize_bicubic(pixels, *self._size)

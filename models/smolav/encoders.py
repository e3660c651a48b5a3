"""SmolAV's frozen encoders: frames through EfficientNet-Lite0, sound through Whisper tiny.en."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Self

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from models.audio.log_mel import log_mel
from models.audio.whisper import load_whisper_tiny_en
from models.layers.init import Params
from models.media.waveform import SAMPLE_RATE
from models.placement import place
from models.smolav.config import SmolAVConfig
from models.smolav.frames import FRAME_SIZE
from models.smolav.preprocess import pool_audio, pool_grid
from models.vision.efficientnet_lite import load_efficientnet_lite0

WINDOW_SECONDS = 30  # Whisper was trained on exactly this much; shorter sound is padded, longer is cut into windows
RATE = 50  # Whisper's vectors per second
BATCH = 8  # frames per call: one compilation serves every clip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _see(graph: nnx.GraphDef, grid: int, params: Params, frames: UInt8[Array, "B Y X 3"]) -> Float[Array, "B P W"]:
    return pool_grid(nnx.merge(graph, params).features(frames), grid)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hear(
    graph: nnx.GraphDef, factor: int, params: Params, mel: Float[Array, "M F"], vectors: Int[Array, ""]
) -> Float[Array, "A W"]:
    return pool_audio(nnx.merge(graph, params)(mel[None])[0], factor, vectors)


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Both encoders, as graph definitions and parameters."""

    config: SmolAVConfig
    vision: tuple[nnx.GraphDef, Params]
    hearing: tuple[nnx.GraphDef, Params]

    @classmethod
    def load(cls, config: SmolAVConfig) -> Self:
        """Fetches the pretrained weights.

        Raises:
            UserError: if they cannot be fetched or read.
        """
        vision, hearing = load_efficientnet_lite0(), load_whisper_tiny_en()
        return cls(config, *((graph, place(params)) for graph, params in (vision, hearing)))

    def frames(self, images: UInt8[np.ndarray, "F Y X 3"]) -> Float[np.ndarray, "F P W"]:
        """Encodes RGB frames of FRAME_SIZE pixels into frame_tokens vectors each.

        Raises:
            ValueError: if the frames have another size.
        """
        batches = [np.asarray(batch) for batch in self.frame_batches(images)]
        none = np.zeros((0, self.config.frame_tokens, self.config.video_width), np.float32)
        return np.concatenate([none, *batches])[: len(images)]

    def frame_batches(self, images: UInt8[np.ndarray, "F Y X 3"]) -> Iterator[Float[Array, "B P W"]]:
        """The same on the device, BATCH frames at a time; what fills the last batch is meaningless.

        Raises:
            ValueError: if the frames have another size.
        """
        if images.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3):
            raise ValueError(f"Frames must be [n, {FRAME_SIZE}, {FRAME_SIZE}, 3], not {images.shape}; resize them.")
        graph, params = self.vision
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            yield _see(graph, self.config.video_grid, params, padded)

    def audio(self, samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "A W"]:
        """Encodes mono sound at 16 kHz into audio_rate vectors per second (the last one may stand for less)."""
        windows = [np.asarray(window) for window in self.audio_windows(samples)]
        none = np.zeros((0, self.config.audio_width), np.float32)
        return np.concatenate([none, *windows])[: self.audio_tokens(len(samples))]

    def audio_windows(self, samples: Float[np.ndarray, " samples"]) -> Iterator[Float[Array, "A W"]]:
        """The same on the device, WINDOW_SECONDS at a time; what fills the last window is meaningless."""
        window = WINDOW_SECONDS * SAMPLE_RATE
        graph, params = self.hearing
        for start in range(0, len(samples), window):
            piece = samples[start : start + window]
            yield _hear(graph, self.pooled, params, log_mel(piece, pad_to=window), np.int32(_vectors(len(piece))))

    @property
    def pooled(self) -> int:
        """Whisper's vectors that are averaged to one audio token."""
        return RATE // self.config.audio_rate

    def audio_tokens(self, samples: int) -> int:
        """Audio tokens that so many samples make."""
        whole, rest = divmod(samples, WINDOW_SECONDS * SAMPLE_RATE)
        return whole * self.window_tokens + math.ceil(_vectors(rest) / self.pooled)

    @property
    def window_tokens(self) -> int:
        """Audio tokens of a whole window."""
        return math.ceil(WINDOW_SECONDS * RATE / self.pooled)


def _vectors(samples: int) -> int:
    """Whisper's vectors that stand for so many samples."""
    return math.ceil(samples * RATE / SAMPLE_RATE)

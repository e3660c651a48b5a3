"""SmolAV's frozen encoders: frames through EfficientNet-Lite0, sound through Whisper tiny.en."""

import dataclasses
import functools
from typing import Self

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from models.audio.log_mel import log_mel
from models.audio.whisper import load_whisper_tiny_en
from models.layers.init import Params
from models.media.waveform import SAMPLE_RATE
from models.smolav.config import SmolAVConfig
from models.smolav.preprocess import pool_audio, pool_grid
from models.vision.efficientnet_lite import load_efficientnet_lite0

WINDOW_SECONDS = 30  # Whisper was trained on exactly this much; shorter sound is padded, longer is cut into windows
RATE = 50  # Whisper's vectors per second
FRAME_SIZE = 224  # EfficientNet-Lite0 was trained on pictures of this size
BATCH = 8  # frames per call: one compilation serves every clip


@functools.partial(jax.jit, static_argnums=0)
def _features(graph: nnx.GraphDef, params: Params, frames: UInt8[Array, "B Y X 3"]) -> Float[Array, "B y x W"]:
    return nnx.merge(graph, params).features(frames)


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, params: Params, mel: Float[Array, "B M F"]) -> Float[Array, "B F/2 W"]:
    return nnx.merge(graph, params)(mel)


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
        return cls(config, *((graph, jax.device_put(params)) for graph, params in (vision, hearing)))

    def frames(self, images: UInt8[np.ndarray, "F Y X 3"]) -> Float[np.ndarray, "F P W"]:
        """Encodes RGB frames of FRAME_SIZE pixels into frame_tokens vectors each.

        Raises:
            ValueError: if the frames have another size.
        """
        if images.shape[1:] != (FRAME_SIZE, FRAME_SIZE, 3):
            raise ValueError(f"Frames must be [n, {FRAME_SIZE}, {FRAME_SIZE}, 3], not {images.shape}; resize them.")
        out = np.zeros((len(images), self.config.frame_tokens, self.config.video_width), np.float32)
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            maps = np.asarray(_features(*self.vision, padded))[: len(batch)]
            out[start : start + BATCH] = pool_grid(maps, self.config.video_grid)
        return out

    def audio(self, samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, "A W"]:
        """Encodes mono sound at 16 kHz into audio_rate vectors per second (the last one may stand for less)."""
        window = WINDOW_SECONDS * SAMPLE_RATE
        parts = [np.zeros((0, self.config.audio_width), np.float32)]
        for start in range(0, len(samples), window):
            piece = samples[start : start + window]
            mel = log_mel(piece, pad_to=window)
            vectors = -(-len(piece) * RATE // SAMPLE_RATE)
            encoded = np.asarray(_encode(*self.hearing, mel[None]))[0, :vectors]
            parts.append(pool_audio(encoded, RATE // self.config.audio_rate))
        return np.concatenate(parts)

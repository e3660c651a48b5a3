"""Qwen2.5-Omni's thinker: a decoder and what embeds the media for it."""

import jax.numpy as jnp
from flax import nnx

from acckv_jax.sharding import ShardingRules
from models.decoder import Decoder
from models.hf.decoder import decoder_tensors
from models.hf.tensors import Tensors
from models.qwen2_5_omni.audio import AudioTower, audio_tensors
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.vision import VisionTower, vision_tensors


class Thinker(nnx.Module):
    """Decoder, vision tower and audio tower."""

    def __init__(
        self,
        config: ThinkerConfig,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        self.decoder = Decoder(config.text, rules=rules, rngs=rngs, dtype=dtype)
        self.vision = VisionTower(config.vision, rngs=rngs, dtype=dtype)
        self.audio = AudioTower(config.audio, rngs=rngs, dtype=dtype)


def thinker_tensors(config: ThinkerConfig) -> Tensors:
    """A checkpoint's tensors, by their names without `thinker.`, and our parameters."""
    decoder = decoder_tensors(config.text, into=("decoder",))
    return decoder | vision_tensors(config.vision) | audio_tensors(config.audio)

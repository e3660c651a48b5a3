"""VideoLLaMA2.1-AV (Cheng et al. 2024, arXiv 2406.07476): Qwen2, SigLIP and BEATs, and what joins them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from acckv_jax.sharding import ShardingRules
from models.audio.beats import Beats
from models.decoder import Decoder
from models.layers.linear import Linear
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.connector import STCConnector
from models.vision.siglip import SiglipVision

FRAMES = 4  # that go through SigLIP at a time


class AudioProjector(nnx.Module):
    """Linear, GELU, linear."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.up = Linear(features, hidden, use_bias=True, rngs=rngs, dtype=dtype)
        self.down = Linear(hidden, hidden, use_bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T D"]:
        """Projects every vector."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class VideoLLaMA2(nnx.Module):
    """The decoder, both towers, and their projections into its space."""

    def __init__(
        self,
        config: VideoLLaMA2Config,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        c = config
        width = c.decoder.hidden_size
        self.config = c
        self.decoder = Decoder(c.decoder, rules=rules, rngs=rngs, dtype=dtype)
        self.vision = SiglipVision(c.vision, rngs=rngs, dtype=dtype)
        self.connector = STCConnector(c.vision.hidden_size, width, rngs=rngs, dtype=dtype)
        self.audio = Beats(c.audio, rngs=rngs, dtype=dtype)
        self.audio_projector = AudioProjector(c.audio.encoder_embed_dim, width, rngs=rngs, dtype=dtype)

    def see(self, frames: Float[Array, "F Y X C"]) -> Float[Array, "T D"]:
        """Video tokens of one clip's frames, as `preprocess.pixels` makes them."""
        grid = self.config.vision.grid

        def patches(frame: Float[Array, "Y X C"]) -> Float[Array, "P W"]:
            return self.vision.patches(frame[None], self.config.vision_layers)[0]

        found = jax.lax.map(patches, frames, batch_size=FRAMES)
        return self.connector(found.reshape(1, len(frames), grid, grid, -1))[0]

    def hear(self, banks: Float[Array, "F M"]) -> Float[Array, "T D"]:
        """Audio tokens of one clip's filter banks, as `preprocess.clip_banks` makes them."""
        return self.audio_projector(self.audio(banks[None]))[0]

"""SmolAV's modules: one decoder, and for each sense a projector into its embedding space."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from acckv_jax import Modality
from acckv_jax.sharding import MeshAxis, ShardingRules
from models.decoder import Decoder
from models.layers.linear import Linear
from models.smolav.config import SmolAVConfig


class Projector(nnx.Module):
    """Standardises encoder outputs and maps them to token embeddings: linear, GELU, linear, fixed RMS."""

    def __init__(self, width: int, config: SmolAVConfig, *, batch: MeshAxis, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        common = {"use_bias": True, "batch": batch, "rngs": rngs, "dtype": dtype}
        self.mean = nnx.Param(jnp.zeros((width,), dtype))
        self.std = nnx.Param(jnp.ones((width,), dtype))
        self.up = Linear(width, config.projector_width, **common)
        self.down = Linear(config.projector_width, config.decoder.hidden_size, **common)
        self.rms = config.embedding_rms

    def __call__(self, x: Float[Array, "B T W"]) -> Float[Array, "B T D"]:
        """Projects every vector."""
        mean, std = (jax.lax.stop_gradient(p[...]).reshape(1, 1, -1) for p in (self.mean, self.std))
        y = self.down(jax.nn.gelu(self.up((x - mean) / std)))
        scale = self.rms * jax.lax.rsqrt(jnp.mean(jnp.square(y.astype(jnp.float32)), -1, keepdims=True) + 1e-6)
        return y * scale.astype(y.dtype)


def time_features(seconds: Float[Array, "B T"], periods: int) -> Float[Array, "B T 2p"]:
    """Sine and cosine of time with periods of 2, 4, 8... seconds."""
    frequencies = (2 * jnp.pi * 0.5 ** jnp.arange(1, periods + 1, dtype=jnp.float32)).reshape(1, 1, -1)
    angles = seconds.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class MediaEmbedder(nnx.Module):
    """Everything between the encoders and the decoder: a projector per sense, and an embedding of time for both."""

    def __init__(
        self,
        config: SmolAVConfig,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        common = {"batch": rules.batch, "rngs": rngs, "dtype": dtype}
        self.periods = config.time_periods
        self.video = Projector(config.video_width, config, **common)
        self.audio = Projector(config.audio_width, config, **common)
        self.time = Linear(2 * config.time_periods, config.decoder.hidden_size, **common)

    def __call__(
        self,
        text: Float[Array, "B T D"],
        modality: Int[Array, "B T"],
        seconds: Float[Array, "B T"],
        video: Float[Array, "B T W"],
        audio: Float[Array, "B T A"],
    ) -> Float[Array, "B T D"]:
        """Input embeddings of a mixed sequence.

        Args:
            text: embeddings of the token ids; ignored where media stand.
            modality: id of each token's `Modality`: text, video or audio.
            seconds: time of each media token.
            video: picture features where a video token stands (`preprocess.media_rows`), anything elsewhere.
            audio: audio features where an audio token stands, anything elsewhere.
        """
        # All positions are projected: `where` is much cheaper than gathering and scattering the media's rows.
        is_video, is_audio = (modality[..., None] == kind for kind in (Modality.VIDEO, Modality.AUDIO))
        media = jnp.where(is_video, self.video(video.astype(text.dtype)), self.audio(audio.astype(text.dtype)))
        media = media + self.time(time_features(seconds, self.periods).astype(text.dtype))
        return jnp.where(is_video | is_audio, media, text)


class SmolAV(nnx.Module):
    """The decoder and what embeds the media for it."""

    def __init__(
        self,
        config: SmolAVConfig,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        self.decoder = Decoder(config.decoder, rules=rules, rngs=rngs, dtype=dtype)
        self.media = MediaEmbedder(config, rules=rules, rngs=rngs, dtype=dtype)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        modality: Int[Array, "B T"],
        seconds: Float[Array, "B T"],
        video: Float[Array, "B T W"],
        audio: Float[Array, "B T A"],
    ) -> Float[Array, "B T D"]:
        """Input embeddings of a mixed sequence of token ids and media; see `MediaEmbedder`."""
        return self.media(self.decoder.embed(tokens), modality, seconds, video, audio)

"""The Whisper audio encoder (Radford et al. 2022, arXiv 2212.04356, section 2.2) and its tiny.en weights."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.hub.weights import fetch
from models.layers.attention import attend
from models.layers.init import FastRngs, Params, abstract_params
from models.layers.linear import Linear
from models.layers.norm import LayerNorm
from models.layers.stacked import run_stacked, stacked
from models.readers.ctranslate2 import read_ctranslate2

EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class WhisperEncoderConfig:
    """Sizes of a Whisper encoder; the names are Hugging Face's."""

    num_mel_bins: int
    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    max_source_positions: int = 1500

    @classmethod
    def tiny_en(cls) -> Self:
        """Whisper tiny.en: 8.2 M parameters, 50 vectors of 384 a second."""
        return cls(80, 384, 4, 6, 1536)

    @classmethod
    def tiny(cls) -> Self:
        """Two small layers, for tests."""
        return cls(8, 16, 2, 2, 32, 20)


class WhisperAttention(nnx.Module):
    """Bidirectional self-attention; the key projection has no bias."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.q = Linear(features, features, use_bias=True, rngs=rngs, dtype=dtype)
        self.k = Linear(features, features, rngs=rngs, dtype=dtype)
        self.v = Linear(features, features, use_bias=True, rngs=rngs, dtype=dtype)
        self.out = Linear(features, features, use_bias=True, rngs=rngs, dtype=dtype)
        self.heads = heads

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"] | None) -> Float[Array, "B T D"]:
        """Applies the layer; every token attends to the first `lengths` of its row, or to all."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        return self.out(attend(q, k, v, lengths).reshape(x.shape))


class WhisperLayer(nnx.Module):
    """Pre-norm attention and GELU MLP.

    Args:
        d: width.
        heads: attention heads.
        f: hidden width of the MLP.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(self, d: int, heads: int, f: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.attn_norm = LayerNorm(d, epsilon=EPSILON, dtype=dtype)
        self.attn = WhisperAttention(d, heads, rngs=rngs, dtype=dtype)
        self.mlp_norm = LayerNorm(d, epsilon=EPSILON, dtype=dtype)
        self.up = Linear(d, f, use_bias=True, rngs=rngs, dtype=dtype)
        self.down = Linear(f, d, use_bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"] | None = None) -> Float[Array, "B T D"]:
        """Applies the layer; every token attends to the first `lengths` of its row, or to all."""
        x = x + self.attn(self.attn_norm(x), lengths)
        return x + self.down(jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=False))


class WhisperEncoder(nnx.Module):
    """Two convolutions (the second halves the rate), fixed positions, transformer layers, final norm."""

    def __init__(self, config: WhisperEncoderConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c = config
        self.config = c
        self.conv1 = nnx.Conv(c.num_mel_bins, c.d_model, (3,), padding=1, param_dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(c.d_model, c.d_model, (3,), strides=2, padding=1, param_dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((c.max_source_positions, c.d_model), dtype))
        sizes = c.d_model, c.encoder_attention_heads, c.encoder_ffn_dim
        self.layers = stacked(lambda: WhisperLayer(*sizes, rngs=rngs, dtype=dtype), c.encoder_layers)
        self.norm = LayerNorm(c.d_model, epsilon=EPSILON, dtype=dtype)

    def __call__(self, mel: Float[Array, "B M F"]) -> Float[Array, "B F/2 D"]:
        """Encodes log-mel frames.

        Args:
            mel: [B, mel bins, F] from `log_mel`, F even and at most twice the number of positions. Whisper was trained
                on exactly 30 s (F = 3000): shorter input is accepted, with features that drift from those of training.

        Raises:
            ValueError: if the shape does not fit.
        """
        c = self.config
        frames = mel.shape[-1]
        if mel.shape[-2] != c.num_mel_bins or frames % 2 or not 0 < frames <= 2 * c.max_source_positions:
            raise ValueError(
                f"The encoder takes [B, {c.num_mel_bins}, F] with F even and at most {2 * c.max_source_positions}, "
                f"not {mel.shape}; pad or cut the sound."
            )
        x = mel.swapaxes(1, 2)
        for conv in (self.conv1, self.conv2):
            x = jax.nn.gelu(conv(x), approximate=False)
        x = x + self.positions[: frames // 2][None]
        return self.norm(run_stacked(self.layers, x, lambda layer, x: layer(x)))


def load_whisper_tiny_en() -> tuple[nnx.GraphDef, Params]:
    """Graph definition and float32 parameters (NumPy) of the tiny.en encoder.

    ``nnx.merge(graph, params)(mel)`` runs it.

    Raises:
        UserError: if the weights cannot be fetched or read.
    """
    graph, _ = abstract_params(lambda: WhisperEncoder(WhisperEncoderConfig.tiny_en(), rngs=FastRngs(0)))
    return graph, whisper_params(read_ctranslate2(fetch("whisper-tiny-en")), WhisperEncoderConfig.tiny_en())


def whisper_params(variables: dict[str, np.ndarray], config: WhisperEncoderConfig) -> Params:
    """CTranslate2's variables as parameters of `WhisperEncoder`.

    CTranslate2 fuses q, k and v into one projection, and gives k a bias of zeros.
    """
    w = {name.removeprefix("encoder/"): a.astype(np.float32) for name, a in variables.items() if name[:8] == "encoder/"}

    def linear(name: str) -> Params:
        return {"kernel": w[name + "/weight"].T, "bias": w[name + "/bias"]}

    def conv(name: str) -> Params:
        return {"kernel": w[name + "/weight"].transpose(2, 1, 0), "bias": w[name + "/bias"]}

    def norm(name: str) -> Params:
        return {"scale": w[name + "/gamma"], "bias": w[name + "/beta"]}

    def layer(number: int) -> Params:
        name = f"layer_{number}"
        kernels = np.split(w[name + "/self_attention/linear_0/weight"].T, 3, axis=1)
        biases = np.split(w[name + "/self_attention/linear_0/bias"], 3)
        q, k, v = ({"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True))
        return {
            "attn_norm": norm(name + "/self_attention/layer_norm"),
            "attn": {"q": q, "k": {"kernel": k["kernel"]}, "v": v, "out": linear(name + "/self_attention/linear_1")},
            "mlp_norm": norm(name + "/ffn/layer_norm"),
            "up": linear(name + "/ffn/linear_0"),
            "down": linear(name + "/ffn/linear_1"),
        }

    return {
        "conv1": conv("conv1"),
        "conv2": conv("conv2"),
        "positions": w["position_encodings/encodings"],
        "layers": jax.tree.map(lambda *x: np.stack(x), *map(layer, range(config.encoder_layers))),
        "norm": norm("layer_norm"),
    }

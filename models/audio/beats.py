"""BEATs (Chen et al. 2022, arXiv 2212.09058): an audio transformer over patches of 16 frames x 16 mel bands.

A post-norm transformer with DeepNet's residual scale (Wang et al. 2022, arXiv 2203.00555), a convolution for absolute
positions (wav2vec 2.0, section 2) and WavLM's gated relative position bias (arXiv 2110.13900, section 3.1).
"""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.errors import UserError
from models.hf.config import Section
from models.hf.tensors import Tensor, Tensors, linear, norm, of_layer
from models.layers.attention import attend
from models.layers.linear import Linear
from models.layers.norm import LayerNorm
from models.layers.stacked import run_stacked, stacked

EPSILON = 1e-5
MEAN, STD = 15.41663, 6.55582  # of the filter banks of AudioSet
GATES = 8  # outputs of the gates' projection: four are summed for each of two gates


@dataclasses.dataclass(frozen=True)
class BeatsConfig:
    """Sizes of a BEATs encoder; the names are those of its checkpoints' `cfg`."""

    embed_dim: int
    encoder_embed_dim: int
    encoder_ffn_embed_dim: int
    encoder_layers: int
    encoder_attention_heads: int
    conv_pos: int
    conv_pos_groups: int
    num_buckets: int
    max_distance: int
    predictor_class: int
    input_patch_size: int = 16

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            UserError: if heads or groups do not divide the width, or the buckets are too few.
        """
        width = self.encoder_embed_dim
        if width % self.encoder_attention_heads or width % self.conv_pos_groups:
            raise UserError(
                f"BEATs' encoder_embed_dim {width} must be a multiple of its {self.encoder_attention_heads} heads and "
                f"{self.conv_pos_groups} groups."
            )
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 4:
            raise UserError("BEATs' num_buckets must be at least 4, and max_distance above a quarter of it.")

    @classmethod
    def iter3_plus_as2m(cls) -> Self:
        """BEATs_iter3+ (AS2M), fine-tuned on AudioSet: 90 M parameters."""
        return cls(512, 768, 3072, 12, 12, 128, 16, 320, 800, 527)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Two small layers, for tests."""
        return dataclasses.replace(cls(12, 16, 24, 2, 2, 8, 2, 16, 20, 5), **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """Reads sizes under these names; all must be there."""
        return cls(**{field.name: section.positive(field.name) for field in dataclasses.fields(cls)})


class PositionalConv(nnx.Module):
    """Grouped convolution over time with weight normalisation per tap; kept as magnitude and direction.

    The padding of half a kernel on both sides makes one output too many where the kernel is even; that one is dropped.
    """

    def __init__(self, config: BeatsConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        width, taps, groups = config.encoder_embed_dim, config.conv_pos, config.conv_pos_groups
        init = jax.nn.initializers.normal((4 / (taps * width)) ** 0.5)
        self.magnitude = nnx.Param(jnp.ones((taps, 1, 1), dtype))
        self.direction = nnx.Param(init(rngs.params(), (taps, width // groups, width), dtype))
        self.bias = nnx.Param(jnp.zeros((width,), dtype))
        self.groups = groups

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the convolution and GELU."""
        direction = self.direction[...].astype(jnp.float32)
        squares = jnp.sum(jnp.square(direction), axis=(1, 2), keepdims=True)
        kernel = self.magnitude[...] * (direction * jax.lax.rsqrt(squares + 1e-6)).astype(x.dtype)
        taps = len(kernel)
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(taps // 2, (taps - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
        )
        return jax.nn.gelu(y + self.bias[...].reshape(1, 1, -1), approximate=False)


def buckets(config: BeatsConfig, length: int) -> Int[np.ndarray, "2T-1"]:
    """Bucket of every distance from -(length - 1) to length - 1 (key minus query).

    Half of the buckets are for keys after the query. In each half, half of the buckets stand for one distance each,
    the others for ranges that grow geometrically up to `max_distance` (T5, arXiv 1910.10683, section 2.1).
    """
    distance = np.arange(1 - length, length)
    half = config.num_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(config.max_distance / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return (np.where(size < exact, size, far) + half * (distance > 0)).astype(np.int32)


class BeatsAttention(nnx.Module):
    """Self-attention whose position bias every query scales by a gate."""

    def __init__(self, config: BeatsConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        width, heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.q, self.k, self.v, self.out = (
            Linear(width, width, use_bias=True, rngs=rngs, dtype=dtype) for _ in range(4)
        )
        self.gates = Linear(width // heads, GATES, use_bias=True, rngs=rngs, dtype=dtype)
        self.gate_scale = nnx.Param(jnp.ones((heads,), dtype))
        self.heads = heads

    def gate(self, q: Float[Array, "B T N H"]) -> Float[Array, "B N T"]:
        """Factor on the position bias of every query and head."""
        pair = jax.nn.sigmoid(self.gates(q).reshape(*q.shape[:-1], 2, GATES // 2).sum(axis=-1))
        update, reset = pair[..., 0], pair[..., 1]
        return (update * (reset * self.gate_scale[...].reshape(1, 1, -1) - 1.0) + 2.0).transpose(0, 2, 1)

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "N 2T-1"]) -> Float[Array, "B T D"]:
        """Applies the layer; `bias` holds the position bias of every distance, as `buckets` orders them."""
        length = x.shape[1]
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        gate = self.gate(q)

        def gated(rows: Int[Array, " R"]) -> Float[Array, "B N R T"]:
            distances = jnp.arange(length)[None] - rows[:, None] + length - 1
            at_distance = jnp.take(bias, distances, axis=1, mode="clip")[None]
            scaled = jnp.take(gate, rows, axis=2, mode="clip")[..., None] * at_distance
            return scaled.astype(jnp.float32)

        return self.out(attend(q, k, v, bias=gated).reshape(x.shape))


class BeatsLayer(nnx.Module):
    """Attention and MLP, each followed by a norm over its sum with the scaled input."""

    def __init__(self, config: BeatsConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        self.attn = BeatsAttention(c, rngs=rngs, dtype=dtype)
        self.attn_norm = LayerNorm(c.encoder_embed_dim, epsilon=EPSILON, dtype=dtype)
        self.up = Linear(c.encoder_embed_dim, c.encoder_ffn_embed_dim, use_bias=True, rngs=rngs, dtype=dtype)
        self.down = Linear(c.encoder_ffn_embed_dim, c.encoder_embed_dim, use_bias=True, rngs=rngs, dtype=dtype)
        self.mlp_norm = LayerNorm(c.encoder_embed_dim, epsilon=EPSILON, dtype=dtype)
        self.residual = (2 * c.encoder_layers) ** 0.25

    def __call__(self, x: Float[Array, "B T D"], bias: Float[Array, "N 2T-1"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        x = self.attn_norm(x * self.residual + self.attn(x, bias))
        return self.mlp_norm(x * self.residual + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Beats(nnx.Module):
    """The encoder, and the tagger of AudioSet's classes that its checkpoints end with."""

    def __init__(self, config: BeatsConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c = config
        self.config = c
        width = c.encoder_embed_dim
        self.patch = Linear(c.input_patch_size**2, c.embed_dim, rngs=rngs, dtype=dtype)
        self.patch_norm = LayerNorm(c.embed_dim, epsilon=EPSILON, dtype=dtype)
        self.into = None if c.embed_dim == width else Linear(c.embed_dim, width, use_bias=True, rngs=rngs, dtype=dtype)
        self.conv = PositionalConv(c, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(width, epsilon=EPSILON, dtype=dtype)
        init = jax.nn.initializers.normal(1.0)
        self.distances = nnx.Param(init(rngs.params(), (c.num_buckets, c.encoder_attention_heads), dtype))
        self.layers = stacked(lambda: BeatsLayer(c, rngs=rngs, dtype=dtype), c.encoder_layers)
        self.tagger = Linear(width, c.predictor_class, use_bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, banks: Float[Array, "B F M"]) -> Float[Array, "B P D"]:
        """Encodes filter banks.

        Args:
            banks: `models.audio.kaldi.fbank` of the sounds; frames and bands beyond whole patches are left out.

        Returns:
            One vector per patch, time by time, within a time from low to high bands.

        Raises:
            ValueError: if there is not one whole patch.
        """
        size = self.config.input_patch_size
        times, bands = banks.shape[1] // size, banks.shape[2] // size
        if not times or not bands:
            raise ValueError(
                f"BEATs takes at least {size} frames of {size} bands, not {banks.shape[1:]}; pad the sound."
            )
        x = (banks[:, : times * size, : bands * size] - MEAN) / (2 * STD)
        x = x.reshape(-1, times, size, bands, size).transpose(0, 1, 3, 2, 4).reshape(-1, times * bands, size**2)
        x = self.patch_norm(self.patch(x.astype(self.patch.kernel.dtype)))
        x = x if self.into is None else self.into(x)
        x = self.norm(x + self.conv(x))
        bias = self.distances[...][buckets(self.config, x.shape[1])].T
        return run_stacked(self.layers, x, lambda layer, x: layer(x, bias))

    def tags(self, banks: Float[Array, "B F M"]) -> Float[Array, "B C"]:
        """Probability of each class of sounds."""
        return jax.nn.sigmoid(self.tagger(self(banks)).mean(axis=1))


def beats_tensors(config: BeatsConfig) -> Tensors:
    """Where the tensors of a checkpoint go: ``patch_embedding.weight`` and so on.

    The position bias is stored with layer 0 and shared by all.
    """
    c = config
    size, heads = c.input_patch_size, c.encoder_attention_heads
    tensors: Tensors = {
        "patch_embedding.weight": Tensor(("patch", "kernel"), (1, 0), (c.embed_dim, 1, size, size)),
        **norm("layer_norm", ("patch_norm",), bias=True),
        "encoder.pos_conv.0.weight_g": Tensor(("conv", "magnitude"), (2, 1, 0)),
        "encoder.pos_conv.0.weight_v": Tensor(("conv", "direction"), (2, 1, 0)),
        "encoder.pos_conv.0.bias": Tensor(("conv", "bias")),
        **norm("encoder.layer_norm", ("norm",), bias=True),
        "encoder.layers.0.self_attn.relative_attention_bias.weight": Tensor(("distances",)),
        **linear("predictor", ("tagger",), bias=True),
    }
    if c.embed_dim != c.encoder_embed_dim:
        tensors |= linear("post_extract_proj", ("into",), bias=True)
    for i in range(c.encoder_layers):
        name = f"encoder.layers.{i}"
        scale = Tensor(("layers", "attn", "gate_scale"), stored=(1, heads, 1, 1))
        layer: Tensors = {f"{name}.self_attn.grep_a": scale}
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            layer |= linear(f"{name}.self_attn.{theirs}", ("layers", "attn", ours), bias=True)
        layer |= linear(f"{name}.self_attn.grep_linear", ("layers", "attn", "gates"), bias=True)
        layer |= norm(f"{name}.self_attn_layer_norm", ("layers", "attn_norm"), bias=True)
        layer |= linear(f"{name}.fc1", ("layers", "up"), bias=True)
        layer |= linear(f"{name}.fc2", ("layers", "down"), bias=True)
        layer |= norm(f"{name}.final_layer_norm", ("layers", "mlp_norm"), bias=True)
        tensors |= of_layer(i, layer)
    return tensors

"""SigLIP's vision transformer (Zhai et al. 2023, arXiv 2303.15343): pre-norm ViT without a class token."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from models.errors import UserError
from models.hf.config import Section
from models.hf.tensors import Path, Tensor, Tensors, linear, norm, of_layer
from models.layers.attention import attend
from models.layers.linear import Linear
from models.layers.norm import LayerNorm
from models.layers.stacked import run_stacked, stacked


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of a SigLIP vision transformer; the names are Hugging Face's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    num_channels: int = 3

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            UserError: if the heads do not divide the width.
        """
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"SigLIP's hidden_size {self.hidden_size} must be a multiple of its {self.num_attention_heads} heads."
            )

    @property
    def grid(self) -> int:
        """Patches along each side; pixels beyond the last whole patch are left out."""
        return self.image_size // self.patch_size

    @classmethod
    def so400m_14_384(cls) -> Self:
        """google/siglip-so400m-patch14-384: 27 x 27 vectors of 1152 for a picture, 428 M parameters."""
        return cls(1152, 4304, 27, 16, 384, 14)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Three small layers, for tests."""
        return dataclasses.replace(cls(16, 24, 3, 2, 20, 5), **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """Reads a vision_config; what Hugging Face's format leaves out there has the published default.

        `check` the section afterwards (`reading` does): it reports another activation, and a missing pooling head.
        """
        section.only("hidden_act", "gelu_pytorch_tanh")
        section.only("vision_use_head", True)
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
        return cls(
            *(section.positive(name) for name in (*sizes, "patch_size")),
            layer_norm_eps=section.get("layer_norm_eps", float, 1e-6),
            num_channels=section.positive("num_channels", 3),
        )


class SiglipAttention(nnx.Module):
    """Bidirectional self-attention."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        width = config.hidden_size
        self.q, self.k, self.v, self.out = (
            Linear(width, width, use_bias=True, rngs=rngs, dtype=dtype) for _ in range(4)
        )
        self.heads = config.num_attention_heads

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        return self.out(attend(q, k, v).reshape(x.shape))


class SiglipMLP(nnx.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.up = Linear(config.hidden_size, config.intermediate_size, use_bias=True, rngs=rngs, dtype=dtype)
        self.down = Linear(config.intermediate_size, config.hidden_size, use_bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class SiglipLayer(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        self.attn_norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.attn = SiglipAttention(c, rngs=rngs, dtype=dtype)
        self.mlp_norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.mlp = SiglipMLP(c, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class PoolingHead(nnx.Module):
    """One learned query attends to all patches; then a residual MLP."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        self.probe = nnx.Param(jnp.zeros((1, 1, c.hidden_size), dtype))
        self.qkv = Linear(c.hidden_size, 3 * c.hidden_size, use_bias=True, rngs=rngs, dtype=dtype)
        self.out = Linear(c.hidden_size, c.hidden_size, use_bias=True, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.mlp = SiglipMLP(c, rngs=rngs, dtype=dtype)
        self.heads = c.num_attention_heads

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        """Pools the patches of every picture."""
        probe = jnp.broadcast_to(self.probe[...], (len(x), 1, x.shape[-1]))
        q = jnp.split(self.qkv(probe), 3, axis=-1)[0]  # the checkpoint fuses the three projections
        k, v = jnp.split(self.qkv(x), 3, axis=-1)[1:]
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        pooled = self.out(attend(q, k, v).reshape(probe.shape))
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class SiglipVision(nnx.Module):
    """The tower: patches, learned positions, layers, final norm and pooling head.

    AV-LLMs read the vectors before the last layer (`patches`); the whole tower is here, so that a checkpoint is loaded
    and written complete.
    """

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c = config
        self.config = c
        self.patch = Linear(
            c.num_channels * c.patch_size**2, c.hidden_size, use_bias=True, rngs=rngs, dtype=dtype
        )  # the checkpoint's strided convolution, as one product
        self.positions = nnx.Param(jnp.zeros((c.grid**2, c.hidden_size), dtype))
        self.layers = stacked(lambda: SiglipLayer(c, rngs=rngs, dtype=dtype), c.num_hidden_layers)
        self.norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.head = PoolingHead(c, rngs=rngs, dtype=dtype)

    def patches(self, pixels: Float[Array, "B Y X C"], layers: int) -> Float[Array, "B P D"]:
        """One vector per patch after the first `layers` layers, in reading order, without the final norm.

        Args:
            pixels: pictures of image_size x image_size, channels last, scaled to [-1, 1].
            layers: how many layers run; Hugging Face's ``hidden_states[layers]``.

        Raises:
            ValueError: if the pictures have another size, or there are not so many layers.
        """
        c = self.config
        if pixels.shape[1:] != (c.image_size, c.image_size, c.num_channels):
            raise ValueError(
                f"SigLIP takes pictures [B, {c.image_size}, {c.image_size}, {c.num_channels}], not {pixels.shape}; "
                "resize them."
            )
        if not 0 <= layers <= c.num_hidden_layers:
            raise ValueError(f"SigLIP has {c.num_hidden_layers} layers, so {layers} of them cannot run.")
        used = c.grid * c.patch_size
        cut = pixels[:, :used, :used].reshape(-1, c.grid, c.patch_size, c.grid, c.patch_size, c.num_channels)
        cut = cut.astype(self.patch.kernel.dtype)
        x = self.patch(cut.transpose(0, 1, 3, 5, 2, 4).reshape(-1, c.grid**2, c.num_channels * c.patch_size**2))
        x = x + self.positions[...][None]
        if layers == c.num_hidden_layers:
            return run_stacked(self.layers, x, lambda layer, x: layer(x))
        # The last ones are passed over: to scan over the first ones would copy them out of the stack.
        runs = np.arange(c.num_hidden_layers) < layers
        return run_stacked(self.layers, x, lambda layer, x, runs: jax.lax.cond(runs, layer, lambda x: x, x), runs)

    def __call__(self, pixels: Float[Array, "B Y X C"]) -> Float[Array, "B D"]:
        """One vector per picture: all layers, final norm, pooling head."""
        return self.head(self.norm(self.patches(pixels, self.config.num_hidden_layers)))


def siglip_tensors(config: SiglipConfig) -> Tensors:
    """Where the tensors of a checkpoint go: ``embeddings.patch_embedding.weight`` and so on.

    On disk they follow ``vision_model.``, except where transformers 5 wrote the tower alone.
    """
    c = config
    patch = (c.hidden_size, c.num_channels, c.patch_size, c.patch_size)
    tensors: Tensors = {
        "embeddings.patch_embedding.weight": Tensor(("patch", "kernel"), (1, 0), patch),
        "embeddings.patch_embedding.bias": Tensor(("patch", "bias")),
        "embeddings.position_embedding.weight": Tensor(("positions",)),
        **norm("post_layernorm", ("norm",), bias=True),
        "head.probe": Tensor(("head", "probe")),
        "head.attention.in_proj_weight": Tensor(("head", "qkv", "kernel"), (1, 0)),
        "head.attention.in_proj_bias": Tensor(("head", "qkv", "bias")),
        **linear("head.attention.out_proj", ("head", "out"), bias=True),
        **norm("head.layernorm", ("head", "norm"), bias=True),
        **_mlp("head.mlp", ("head", "mlp")),
    }
    for i in range(c.num_hidden_layers):
        name = f"encoder.layers.{i}"
        layer = _mlp(f"{name}.mlp", ("layers", "mlp"))
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            layer |= linear(f"{name}.self_attn.{theirs}", ("layers", "attn", ours), bias=True)
        layer |= norm(f"{name}.layer_norm1", ("layers", "attn_norm"), bias=True)
        layer |= norm(f"{name}.layer_norm2", ("layers", "mlp_norm"), bias=True)
        tensors |= of_layer(i, layer)
    return tensors


def _mlp(name: str, path: Path) -> Tensors:
    return linear(f"{name}.fc1", (*path, "up"), bias=True) | linear(f"{name}.fc2", (*path, "down"), bias=True)

"""VideoLLaMA2's spatial-temporal convolution (STC) connector, version 35 (Cheng et al. 2024, arXiv 2406.07476, 3.2).

RegNet-Y stages (Radosavovic et al. 2020, arXiv 2003.13678) over each frame before and after a convolution that halves
time, height and width; then an MLP into the decoder's space. Channels last.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.hf.tensors import Path, Tensor, Tensors, linear, norm
from models.layers.depthwise import DepthwiseConv
from models.layers.linear import Linear
from models.layers.norm import LayerNorm

EPSILON = 1e-5
DEPTH = 4  # blocks of a stage
STEP = 2  # how much the sampler shortens time, height and width
SQUEEZE = 0.25  # width inside squeeze-and-excitation, relative to the block's input


class ConvNorm(nnx.Module):
    """1 x 1 convolution, and layer norm over the channels."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.conv = Linear(features_in, features_out, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(features_out, epsilon=EPSILON, dtype=dtype)

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X D"]:
        """Applies both."""
        return self.norm(self.conv(x))


class SqueezeExcite(nnx.Module):
    """Scales every channel by a gate computed from the means of all (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        self.down = Linear(features, hidden, use_bias=True, rngs=rngs, dtype=dtype)
        self.up = Linear(hidden, features, use_bias=True, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        """Applies the gates."""
        return x * jax.nn.sigmoid(self.up(jax.nn.silu(self.down(x.mean(axis=(1, 2), keepdims=True)))))


class Bottleneck(nnx.Module):
    """RegNet-Y's residual block with groups of one channel; a projected shortcut where the width changes."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        common = {"rngs": rngs, "dtype": dtype}
        self.into = ConvNorm(features_in, features_out, **common)
        self.depthwise = DepthwiseConv(features_out, 3, 1, use_bias=False, **common)
        self.depthwise_norm = LayerNorm(features_out, epsilon=EPSILON, dtype=dtype)
        self.squeeze = SqueezeExcite(features_out, squeezed(features_in), **common)
        self.out = ConvNorm(features_out, features_out, **common)
        self.shortcut = None if features_in == features_out else ConvNorm(features_in, features_out, **common)

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X D"]:
        """Applies the block."""
        y = jax.nn.silu(self.into(x))
        y = self.squeeze(jax.nn.silu(self.depthwise_norm(self.depthwise(y))))
        return jax.nn.silu(self.out(y) + (x if self.shortcut is None else self.shortcut(x)))


def squeezed(features: int) -> int:
    """Width inside the squeeze-and-excitation of a block with that many input channels."""
    return round(features * SQUEEZE)


class STCConnector(nnx.Module):
    """From the vectors of all patches of all frames to the video tokens of the decoder.

    Args:
        features: width of the patches' vectors.
        hidden: width of the decoder.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        common = {"rngs": rngs, "dtype": dtype}
        widths = (features, *(hidden,) * (DEPTH - 1))
        self.before = nnx.List(Bottleneck(width, hidden, **common) for width in widths)
        # the checkpoint's strided convolution, as one product
        self.sampler = Linear(hidden * STEP**3, hidden, use_bias=True, **common)
        self.after = nnx.List(Bottleneck(hidden, hidden, **common) for _ in range(DEPTH))
        self.up = Linear(hidden, hidden, use_bias=True, **common)
        self.down = Linear(hidden, hidden, use_bias=True, **common)

    def __call__(self, x: Float[Array, "B F Y X C"]) -> Float[Array, "B T D"]:
        """Video tokens, time by time, in reading order within a time; T = F/2 * Y/2 * X/2, rounded down each.

        Raises:
            ValueError: if there are fewer than two frames, or fewer than 2 x 2 patches.
        """
        batch, frames, height, width, _ = x.shape
        grid = (frames // STEP, height // STEP, width // STEP)
        if not all(grid):
            raise ValueError(f"The connector takes at least 2 frames of 2 x 2 patches, not {(frames, height, width)}.")
        y = x.reshape(batch * frames, height, width, -1)
        for block in self.before:
            y = block(y)
        y = y.reshape(batch, frames, height, width, -1)[:, : grid[0] * STEP, : grid[1] * STEP, : grid[2] * STEP]
        y = y.reshape(batch * grid[0], STEP, grid[1], STEP, grid[2], STEP, -1).transpose(0, 2, 4, 6, 1, 3, 5)
        y = jax.nn.silu(self.sampler(y.reshape(batch * grid[0], *grid[1:], -1)))
        for block in self.after:
            y = block(y)
        y = y.reshape(batch, grid[0] * grid[1] * grid[2], -1)
        return self.down(jax.nn.gelu(self.up(y), approximate=False))


def stc_tensors(features: int, hidden: int) -> Tensors:
    """Where the tensors of a checkpoint go: ``s1.b1.conv1.conv.weight`` and so on."""
    tensors: Tensors = {
        "sampler.0.weight": Tensor(("sampler", "kernel"), (1, 0), (hidden, hidden, STEP, STEP, STEP)),
        "sampler.0.bias": Tensor(("sampler", "bias")),
        **linear("readout.0", ("up",), bias=True),
        **linear("readout.2", ("down",), bias=True),
    }
    for stage, ours in (("s1", "before"), ("s2", "after")):
        for i in range(DEPTH):
            width = features if stage == "s1" and i == 0 else hidden
            tensors |= _block(f"{stage}.b{i + 1}", (ours, i), width, hidden)
    return tensors


def _block(name: str, path: Path, features_in: int, features_out: int) -> Tensors:
    wide, narrow = features_out, squeezed(features_in)
    tensors: Tensors = {
        **_conv_norm(f"{name}.conv1", (*path, "into"), features_in, wide),
        f"{name}.conv2.conv.weight": Tensor((*path, "depthwise", "kernel"), (1, 2, 0), (wide, 1, 3, 3)),
        **norm(f"{name}.conv2.bn", (*path, "depthwise_norm"), bias=True),
        **_conv_norm(f"{name}.conv3", (*path, "out"), wide, wide),
    }
    for layer, ours, sizes in (("fc1", "down", (narrow, wide)), ("fc2", "up", (wide, narrow))):
        at = (*path, "squeeze", ours)
        tensors[f"{name}.se.{layer}.weight"] = Tensor((*at, "kernel"), (1, 0), (*sizes, 1, 1))
        tensors[f"{name}.se.{layer}.bias"] = Tensor((*at, "bias"))
    if features_in != features_out:
        tensors |= _conv_norm(f"{name}.downsample", (*path, "shortcut"), features_in, wide)
    return tensors


def _conv_norm(name: str, path: Path, features_in: int, features_out: int) -> Tensors:
    kernel = Tensor((*path, "conv", "kernel"), (1, 0), (features_out, features_in, 1, 1))
    return {f"{name}.conv.weight": kernel} | norm(f"{name}.bn", (*path, "norm"), bias=True)

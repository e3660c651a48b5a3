"""Feed-forward layers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from acckv_jax.sharding import ShardingRules
from models.layers.linear import Linear

ROWS = 2048
"""Rows of a long prompt that go through a feed-forward layer at a time; longer buckets are multiples of it."""


def in_row_blocks(
    layer: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]], x: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """A layer that treats every row by itself, applied to some rows after the other where a prompt is long.

    What a feed-forward layer has in between is several times as wide as its input: all rows of a 7B's at once are a
    large part of the memory that a prefill of 20,000 tokens needs beside the weights.
    """
    batch, tokens, width = x.shape
    if tokens <= 4 * ROWS or tokens % ROWS:
        return layer(x)
    blocks = x.reshape(batch, tokens // ROWS, ROWS, width).swapaxes(0, 1)
    return jax.lax.map(layer, blocks).swapaxes(0, 1).reshape(x.shape)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        use_bias: bool = False,
        rules: ShardingRules,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        shared = {"use_bias": use_bias, "batch": rules.batch, "rngs": rngs, "dtype": dtype}
        self.gate = Linear(features, hidden, axis_out=rules.mlp, **shared)
        self.up = Linear(features, hidden, axis_out=rules.mlp, **shared)
        self.down = Linear(hidden, features, axis_in=rules.mlp, **shared)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies the layer."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))

"""Feed-forward layers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from acckv_jax.sharding import ShardingRules
from models.layers.linear import Linear


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

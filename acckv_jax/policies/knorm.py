"""L2 norm of keys: low norms are attended to most (Devoto et al. 2024, arXiv 2406.11430)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context


@dataclasses.dataclass(frozen=True)
class Knorm(CachePolicy):
    """Keeps the tokens whose keys have the smallest L2 norm; needs no attention at all.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Knorm(budget=0.2).queries
        ()
    """

    can_evict: ClassVar[bool] = True

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Minus the norm of the key."""
        return -jnp.linalg.norm(layer.keys.astype(jnp.float32), axis=-1)

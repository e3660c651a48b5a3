"""KeyDiff: keys unlike the others are attended to most (Park et al. 2025, arXiv 2504.15364)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.cache import LayerCache
from acckv_jax.merging import unit
from acckv_jax.policy import CachePolicy, Context


@dataclasses.dataclass(frozen=True)
class KeyDiff(CachePolicy):
    """Keeps the tokens whose keys point away from the mean direction of their head's keys; needs no attention at all.

    Example:
        >>> import acckv_jax as kv
        >>> kv.KeyDiff(budget=0.2).queries
        ()
    """

    can_evict: ClassVar[bool] = True

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Minus the cosine between a key and the mean of all keys of length one."""
        keys = jnp.where(layer.valid[..., None], unit(layer.keys), 0.0)
        return -(keys * unit(keys.sum(2, keepdims=True))).sum(-1)

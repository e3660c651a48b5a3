"""Random eviction: the control that every score has to beat."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from acckv_jax.budget import TEXT_NEEDS, TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import is_text
from acckv_jax.selection import gather_slots


@dataclasses.dataclass(frozen=True)
class Random(CachePolicy):
    """Keeps the text and a random choice of the other tokens, per layer and KV head.

    Attributes:
        seed: of the choice; a token's lot depends on its index, layer and head alone, not on the batch around it.
        only: media tokens to choose from, "video" or "audio"; those of the other modality come last.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Random(budget=0.5, seed=1) == kv.Random(budget=0.5, seed=2)
        False
    """

    seed: int = 0
    only: Literal["any", "video", "audio"] = "any"

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Text must fit."""
        return np.maximum(counts.text, 1), TEXT_NEEDS

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """A random number for every token; text comes first."""
        key = jax.random.fold_in(jax.random.key(self.seed), context.layer)
        kv_heads, slots = layer.index.shape[1:]
        lots = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (kv_heads,)))(jnp.arange(slots))
        score = gather_slots(jnp.zeros_like(layer.mass) + lots.T[None], layer.index)
        if self.only != "any":
            score = jnp.where(layer.modality == Modality[self.only.upper()], score, score - 1.0)  # lots are below 1
        return jnp.where(is_text(layer.modality), jnp.inf, score)

"""Random eviction: the control that every score has to beat."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TEXT_NEEDS, TokenCounts, check_slots
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, is_text
from acckv_jax.selection import pick, top


@dataclasses.dataclass(frozen=True)
class Random(CachePolicy):
    """Keeps the text and a random choice of the other tokens, per layer and KV head.

    Attributes:
        seed: of the choice; a token's lot depends on its index, layer and head alone, not on the batch around it.
    """

    seed: int = 0

    def check(self, counts: TokenCounts) -> None:
        """Text must fit."""
        check_slots(self.budget, counts, np.maximum(counts.text, 1), TEXT_NEEDS)

    def choose(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        budget: Int[Array, " B"],
        index: Int[Array, ""],
    ) -> Bool[Array, "B K S"]:
        """The text and a random choice."""
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        kv_heads, slots = layer.index.shape[1:]
        lots = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (kv_heads,)))(jnp.arange(slots))
        score = _lots(lots, layer.index)
        score = jnp.where(is_text(layer.modality), jnp.inf, score)
        return top(score, layer.valid, budget)


def _lots(lots: Float[Array, "S K"], index: Int[Array, "B K S"]) -> Float[Array, "B K S"]:
    """lots[index[b, k, s], k]."""
    return pick(jnp.zeros_like(index, dtype=jnp.float32) + lots.T[None], index)

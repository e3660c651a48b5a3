"""LOOK-M: text first, the rest merged into what is kept (Wan et al. 2024, arXiv 2406.18139, section 3)."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TEXT_NEEDS, TokenCounts, rounded_share
from acckv_jax.cache import LayerCache
from acckv_jax.merging import nearest, unit, weighted_means
from acckv_jax.policy import CachePolicy, Context, flagged_scores, keep, scores_of
from acckv_jax.queries import QuerySet, is_text
from acckv_jax.selection import chosen_slots, gather_slots, top_k_mask


@dataclasses.dataclass(frozen=True)
class LookM(CachePolicy):
    """Keeps text, recent tokens and, of the others, those with the largest sum of attention over all rows.

    A token that is dropped is merged into the kept token of the same head whose key has the largest cosine with its
    own, keys and values alike. Of n tokens e merged into a kept one c, the slot then holds

    - averaged: (c + sum e) / (n + 1);
    - pivotal: (c + sum (e + c) / 2) / (n + 1);
    - weighted: (c + sum cosine(e, c) * e) / (n + 1), where the cosine is the keys' for values too.

    Attributes:
        merge: one of these, or none.
        recent: share of the budget for recent tokens, in slots rounded half to even; text comes before them.

    Example:
        >>> import acckv_jax as kv
        >>> kv.LookM(budget=0.2).merge
        'pivotal'
    """

    merge: Literal["averaged", "pivotal", "weighted", "none"] = "pivotal"
    recent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent is a share of the budget from 0 to 1, not {self.recent}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Text must fit."""
        return np.maximum(counts.text, 1), TEXT_NEEDS

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """Every row counts once."""
        return (QuerySet(),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention that a token has received."""
        return context.attention_sums(self.queries[0])

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """Text and what must stay, then recent tokens, then the best of the others."""
        sure = is_text(layer.modality) if context.keep is None else is_text(layer.modality) | context.keep
        sure = layer.valid & sure
        newest = layer.index.astype(jnp.float32)
        recent = top_k_mask(newest, layer.valid, rounded_share(self.recent, context.budget, layer.slots))
        left = context.budget[:, None] - sure.sum(-1, dtype=jnp.int32)
        sure |= top_k_mask(newest, recent & ~sure, left)
        return super().select(scores, layer, dataclasses.replace(context, keep=sure))

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """Keeps the selected tokens, and merges the others into them."""
        scores = scores_of(self, "token_scores", layer, context)
        layer = flagged_scores(layer, scores)
        chosen = self.select(scores, layer, context) if context.chosen is None else context.chosen
        chosen &= layer.valid
        small = keep(layer, chosen, context)
        if self.merge == "none":
            return small, context.carry
        _, _, place = chosen_slots(chosen, context.capacity)
        lost, kept = jnp.where(layer.valid & ~chosen, 0, -1), jnp.where(small.valid, 0, -2)
        target = jnp.where(chosen, place, nearest(layer.keys, small.keys, lost, kept))
        weight = jnp.ones_like(layer.mass)
        if self.merge == "weighted":
            weight = jnp.where(chosen, 1.0, _cosine(layer, small, target))
        keys, count = self._merged(layer.keys, small.keys, layer, weight, target)
        values, _ = self._merged(layer.values, small.values, layer, weight, target)
        return dataclasses.replace(small, k=keys, v=values, multiplicity=count), context.carry

    def _merged(
        self,
        x: Float[Array, "B K S H"],
        own: Float[Array, "B K C H"],
        layer: LayerCache,
        weight: Float[Array, "B K S"],
        target: Int[Array, "B K S"],
    ) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C"]]:
        """Keys or values `x`, merged into the slots whose `own` they were, and the tokens in each slot."""
        mean, count = weighted_means(x.astype(jnp.float32) * weight[..., None], layer, target, own.shape[2])
        if self.merge == "pivotal":  # halfway to the kept one before the mean is halfway to it after the mean
            mean = (mean + own.astype(jnp.float32)) / 2
        return mean.astype(x.dtype), count


def _cosine(layer: LayerCache, small: LayerCache, target: Int[Array, "B K S"]) -> Float[Array, "B K S"]:
    """Cosine between each token's key and that of the slot it goes to."""
    pivots = gather_slots(unit(small.keys), jnp.minimum(target, small.slots - 1))
    return (unit(layer.keys) * pivots).sum(-1)

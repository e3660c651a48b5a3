"""MadaKV: a head's budget split by what it attends to in each modality (Li et al. 2025, arXiv 2506.15724, section 4).

No code was published; how the parts fit together is said below, and in docs/policies.md.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TokenCounts, slots_of
from acckv_jax.cache import LayerCache
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet
from acckv_jax.selection import top_k_mask

ROUNDING = 1e-3
"""Added to sums of parts of slots before they are rounded down."""


@dataclasses.dataclass(frozen=True)
class MadaKV(CachePolicy):
    """Splits each head's budget over text, video and audio by the attention they receive from the last rows.

    Within a modality the most attended tokens stay, but no more than it takes to cover the share `coverage` of its
    attention. What a layer's heads leave over, on average, is divided among the layers above, which may so hold up to
    `most` times the budget; they allocate that.

    Attributes:
        window_size: rows at the end of the prompt that observe (the paper's proxy tokens).
        coverage: share of a modality's attention beyond which no more of its tokens stay (the paper's theta).
        most: slots that a layer may hold, and allocates, over its budget.

    Example:
        >>> import acckv_jax as kv
        >>> kv.MadaKV(budget=0.2, most=1.5).capacity(1000, layer=0)
        300
    """

    window_size: int = 32
    coverage: float = 0.9
    most: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size must be at least 1, not {self.window_size}.")
        if not 0.0 < self.coverage <= 1.0:
            raise ValueError(f"coverage is a share of attention, above 0 and at most 1, not {self.coverage}.")
        if self.most < 1.0:
            raise ValueError(f"most is a multiple of the budget, at least 1, not {self.most}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """A slot, or two where video and audio stand without text, which else takes what rounding leaves."""
        return 1 + ((counts.text == 0) & (counts.video > 0) & (counts.audio > 0)), "a row needs"

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The last rows of the prompt."""
        return (QuerySet(last=self.window_size),)

    def capacity(self, bucket: int, layer: int) -> int:
        """Slots for a layer that is given all it may have from the layers below."""
        return max(1, min(bucket, int(self.most * slots_of(self.budget, bucket))))

    def init_carry(self, modality: Int[Array, "B S"]) -> Float[Array, " B"]:
        """[B] slots that a layer may hold beyond its budget."""
        return jnp.zeros_like(modality[:, 0], jnp.float32)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention of the last rows."""
        return context.attention_sums(self.queries[0])

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """Of each modality the best, as many as its share of the layer's budget allows and its coverage needs."""
        own = jnp.floor(self._slots(context) + ROUNDING).astype(jnp.int32)[:, None]
        sure = jnp.zeros_like(layer.valid) if context.keep is None else layer.valid & context.keep
        left = jnp.maximum(own - sure.sum(-1, dtype=jnp.int32), 0)  # [B, K]
        attention = jnp.where(layer.valid & ~sure, context.attention_sums(self.queries[0]), 0.0)
        total = jnp.maximum(attention.sum(-1), jnp.finfo(jnp.float32).tiny)
        chosen, spent = sure, jnp.zeros_like(left)
        for kind in (Modality.VIDEO, Modality.AUDIO, Modality.TEXT):  # text takes what rounding leaves
            among = layer.valid & ~sure & (layer.modality == kind)
            mass = jnp.where(among, attention, 0.0)
            share = jnp.floor(mass.sum(-1) / total * left.astype(jnp.float32)).astype(jnp.int32)
            quota = left - spent if kind == Modality.TEXT else share
            if self.coverage < 1.0:  # else all tokens count, however small what they add is
                quota = jnp.minimum(quota, _covering(mass, self.coverage))
            chosen |= top_k_mask(scores, among, quota)
            spent += share
        everything = (own >= context.length[:, None])[..., None]
        return jnp.where(everything, layer.valid, chosen)

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As `select` says; what the heads leave over on average goes to the layers above in equal parts."""
        small, _ = super().compress(layer, context)
        slots, heads = self._slots(context), layer.valid.shape[1]
        used = small.valid.sum((1, 2), dtype=jnp.int32).astype(jnp.float32) / heads
        above = jnp.maximum(context.num_layers - 1 - context.layer, 1).astype(jnp.float32)
        return small, slots - context.budget.astype(jnp.float32) + (slots - used) / above

    def _slots(self, context: Context) -> Float[Array, " B"]:
        """[B] what a head of this layer may hold: the budget and what was left over, up to `most` times the budget."""
        budget = context.budget.astype(jnp.float32)
        return jnp.minimum(budget + context.carry, jnp.floor(self.most * budget))


def _covering(mass: Float[Array, "B K S"], share: float) -> Int[Array, "B K"]:
    """How many of the largest entries it takes to hold this share of their sum."""
    largest = jnp.cumsum(-jnp.sort(-mass, axis=-1), axis=-1)
    return 1 + (largest < share * mass.sum(-1, keepdims=True)).sum(-1, dtype=jnp.int32)

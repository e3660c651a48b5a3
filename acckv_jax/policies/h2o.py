"""H2O: heavy hitters by accumulated attention, and the most recent tokens (Zhang et al. 2023, arXiv 2306.14048)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.budget import rounded_share
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet
from acckv_jax.selection import top_k_mask


@dataclasses.dataclass(frozen=True)
class H2O(CachePolicy):
    """Keeps the most recent tokens and, of the others, those with the largest sum of attention over all rows.

    Attributes:
        evict_every: decode steps between two prunes; the paper's 1 copies the whole cache at every step.
        recent: share of the budget for recent tokens (the paper's setting is half), in slots rounded half to even.

    Example:
        >>> import acckv_jax as kv
        >>> kv.H2O(budget=512, evict_every=1).reserved_slots(new_tokens=100)
        1
    """

    evict_every: int = 16
    recent: float = 0.5
    can_evict: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent is a share of the budget from 0 to 1, not {self.recent}.")

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """Every row counts once."""
        return (QuerySet(),)

    @property
    def mass_queries(self) -> QuerySet:
        """Decoding adds the attention of every step."""
        return QuerySet()

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention that a token has received so far; recent tokens come first."""
        recent_slots = rounded_share(self.recent, context.budget, layer.slots)
        recent = top_k_mask(layer.index.astype(jnp.float32), layer.valid, recent_slots)
        return jnp.where(recent, jnp.inf, layer.mass)

"""H2O: heavy hitters by accumulated attention, and the most recent tokens (Zhang et al. 2023, arXiv 2306.14048)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import RowWeights
from acckv_jax.budget import rounded_share
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Rows, keep_between_steps
from acckv_jax.selection import top


@dataclasses.dataclass(frozen=True)
class H2O(CachePolicy):
    """Keeps the most recent tokens and, of the others, those with the largest sum of attention over all rows.

    Attributes:
        every: decode steps between two prunes; the paper's 1 copies the whole cache at every step.
        recent: share of the budget for recent tokens (the paper's setting is half), in slots rounded half to even.
    """

    every: int = 16
    recent: float = 0.5
    tracks_mass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent is a share of the budget from 0 to 1, not {self.recent}.")

    def row_weights(self, rows: Rows) -> RowWeights:
        """Every row counts once."""
        return RowWeights(rows.valid.astype(jnp.float32)[None])

    def after_prefill(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        capacity: int,
        index: Int[Array, ""],
    ) -> LayerCache:
        """Keeps recent tokens and heavy hitters of the prompt, with their mass."""
        layer = dataclasses.replace(layer, mass=sums[0])
        return super().after_prefill(layer, sums, length, capacity, index)

    def choose(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        budget: Int[Array, " B"],
        index: Int[Array, ""],
    ) -> Bool[Array, "B K S"]:
        """Recent tokens and heavy hitters."""
        return self._chosen(layer, budget)

    def evict(self, layer: LayerCache) -> LayerCache:
        """The same over what is left and what was generated, with the mass accumulated while decoding."""
        return keep_between_steps(layer, self._chosen(layer, layer.budget))

    def _chosen(self, layer: LayerCache, budget: Int[Array, " B"]) -> Bool[Array, "B K S"]:
        recent_slots = rounded_share(self.recent, budget, layer.slots)
        recent = top(layer.index.astype(jnp.float32), layer.valid, recent_slots)
        return top(jnp.where(recent, jnp.inf, layer.mass), layer.valid, budget)

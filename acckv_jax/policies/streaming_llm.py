"""StreamingLLM: attention sinks and the most recent tokens (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TokenCounts, slots_of
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, keep
from acckv_jax.selection import top


@dataclasses.dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """Keeps the first `sinks` tokens and the most recent ones. Positions are not re-numbered: keys stay rotated.

    Attributes:
        every: decode steps between two prunes; the paper's 1 copies the whole cache at every step.
        sinks: first tokens of the sequence that are always kept.
    """

    every: int = 16
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0:
            raise ValueError(f"sinks is a number of tokens, not {self.sinks}.")

    def check(self, counts: TokenCounts) -> None:
        """The sinks and one recent token must fit."""
        for row, length in enumerate(counts.length.tolist()):
            need = min(self.sinks + 1, length)
            if slots_of(self.budget, length) < need:
                raise ValueError(
                    f"budget {self.budget} of row {row} ({length} tokens) is smaller than {self.sinks} sinks and one "
                    f"recent token: the smallest possible budget is {need}."
                )

    def after_prefill(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        capacity: int,
        index: Int[Array, ""],
    ) -> LayerCache:
        """Keeps sinks and recent tokens of the prompt."""
        budget = self.row_budget(length, layer.slots)
        return keep(layer, self._chosen(layer, budget), budget, capacity)

    def evict(self, layer: LayerCache) -> LayerCache:
        """Keeps sinks and recent tokens, generated ones included."""
        return keep(layer, self._chosen(layer, layer.budget), layer.budget, layer.slots - layer.room)

    def _chosen(self, layer: LayerCache, budget: Int[Array, " B"]) -> Bool[Array, "B K S"]:
        score = jnp.where(layer.index < self.sinks, jnp.inf, layer.index.astype(jnp.float32))
        return top(score, layer.valid, budget)

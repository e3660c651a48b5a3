"""StreamingLLM: attention sinks and the most recent tokens (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TokenCounts, check_slots
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, keep_between_steps
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
        check_slots(self.budget, counts, self.sinks + 1, f"{self.sinks} sinks and one recent token need")

    def choose(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        budget: Int[Array, " B"],
        index: Int[Array, ""],
    ) -> Bool[Array, "B K S"]:
        """Sinks and recent tokens of the prompt."""
        return self._chosen(layer, budget)

    def evict(self, layer: LayerCache) -> LayerCache:
        """Keeps sinks and recent tokens, generated ones included."""
        return keep_between_steps(layer, self._chosen(layer, layer.budget))

    def _chosen(self, layer: LayerCache, budget: Int[Array, " B"]) -> Bool[Array, "B K S"]:
        score = jnp.where(layer.index < self.sinks, jnp.inf, layer.index.astype(jnp.float32))
        return top(score, layer.valid, budget)

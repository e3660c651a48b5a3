"""Full cache: keeps every token."""

import dataclasses

from jaxtyping import Array, Float, Int

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy


@dataclasses.dataclass(frozen=True)
class Full(CachePolicy):
    """Keeps every token; the budget is ignored."""

    def check(self, counts: TokenCounts) -> None:
        """Any budget will do."""

    def capacity(self, bucket: int) -> int:
        """All slots of the bucket."""
        return bucket

    def after_prefill(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        capacity: int,
        index: Int[Array, ""],
    ) -> LayerCache:
        """The layer as it is."""
        return dataclasses.replace(layer, budget=length)

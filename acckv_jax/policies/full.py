"""Full cache: keeps every token."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context


@dataclasses.dataclass(frozen=True)
class Full(CachePolicy):
    """Keeps every token; the budget is ignored.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Full().capacity(1000, layer=0)
        1000
    """

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Any budget will do."""
        return 0, "a row needs"

    def capacity(self, bucket: int, layer: int) -> int:
        """All slots of the bucket."""
        return bucket

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        """All tokens."""
        return length

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """The layer as it is."""
        return dataclasses.replace(layer, budget=context.budget), context.carry

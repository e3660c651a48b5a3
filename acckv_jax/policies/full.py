"""Full cache: keeps every token."""

import dataclasses

from acckv_jax.policy import CachePolicy


@dataclasses.dataclass(frozen=True)
class Full(CachePolicy):
    """Keeps every token; the budget is ignored."""

    def capacity(self, bucket: int, layer: int, layers: int) -> int:
        """All slots of the bucket."""
        return bucket

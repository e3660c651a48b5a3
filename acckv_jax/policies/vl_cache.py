"""VL-Cache: what is attended to after the media, and budgets of layers by sparsity (Tu et al. 2024, arXiv 2410.23317).

The budgets of layers come from a calibration run, `acckv_jax.vl_cache_shares`, because capacities are static.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.budget import rounded_share
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet
from acckv_jax.selection import top_k_mask


@dataclasses.dataclass(frozen=True)
class VLCache(CachePolicy):
    """Keeps recent tokens and, of the others, those that the rows after the last media token attend to most.

    These rows are the question. Where nothing follows the media, they are the last row alone; without media, all.

    Attributes:
        recent: share of the budget for the most recent tokens, in slots rounded half to even.

    Example:
        >>> import acckv_jax as kv
        >>> kv.PerLayer(kv.VLCache(budget=0.1), shares=(1.6, 0.4)).capacity(1000, layer=0)
        160
    """

    recent: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.recent <= 1.0:
            raise ValueError(f"recent is a share of the budget from 0 to 1, not {self.recent}.")

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The rows after the media."""
        return (QuerySet(rows="after_media"),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention of the rows after the media; recent tokens come first."""
        recent_slots = rounded_share(self.recent, context.budget, layer.slots)
        recent = top_k_mask(layer.index.astype(jnp.float32), layer.valid, recent_slots)
        return jnp.where(recent, jnp.inf, context.attention_sums(self.queries[0]))

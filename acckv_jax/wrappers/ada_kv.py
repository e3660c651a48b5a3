"""Ada-KV: the heads of a layer share one budget (Feng et al. 2024, arXiv 2407.11550, section 3.3, algorithm 1)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from acckv_jax.budget import floored_share, rounded_share
from acckv_jax.cache import LayerCache
from acckv_jax.policy import Context
from acckv_jax.selection import top_k_mask
from acckv_jax.wrappers.base import Wrapper
from acckv_jax.wrappers.protected import check_selects_alone


@dataclasses.dataclass(frozen=True)
class AdaKV(Wrapper):
    """Chooses the best slots of all KV heads of a layer together, so that a head keeps what its scores are worth.

    The heads of a row hold its budget on average. As shapes are static, all of them allocate what one may hold at most,
    `most` times the budget, and `cache_bytes` counts that; `compact` frees what no head of a layer uses.

    Attributes:
        inner: the policy inside, whose scores are compared between heads.
        floor: share of the budget that every head keeps.
        most: slots that a head may hold, over the budget.

    Raises:
        ValueError: if `floor` is no share, `most` is below 1, or something inside selects slots by a rule of its own,
            or protects some: `Protected` belongs outside.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.AdaKV(kv.SnapKV(budget=0.2), most=2.0)
        >>> policy.capacity(1000, layer=0)
        400
    """

    floor: float = 0.2
    most: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor is a share of the budget from 0 to 1, not {self.floor}.")
        if self.most < 1.0:
            raise ValueError(f"most is how many times its budget a head may hold, at least 1, not {self.most}.")
        check_selects_alone(self)

    def capacity(self, bucket: int, layer: int) -> int:
        """What the fullest head may hold."""
        return min(bucket, round(self.most * self.inner.capacity(bucket, layer)))

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """Each head's floor, and of all other slots the best, but no more of one head than it may hold."""
        budget, slots = context.budget, layer.slots
        sure = layer.valid & (False if context.keep is None else context.keep)
        floor = floored_share(self.floor, budget, slots)[:, None]
        sure |= top_k_mask(scores, layer.valid & ~sure, floor - sure.sum(-1, dtype=jnp.int32))
        most = jnp.minimum(rounded_share(self.most, budget, slots), context.capacity)[:, None]
        held = sure.sum(-1, dtype=jnp.int32)
        others = top_k_mask(scores, layer.valid & ~sure, most - held)
        left = budget * scores.shape[1] - held.sum(-1, dtype=jnp.int32)
        return sure | top_k_mask(scores, others, left, over_heads=True)

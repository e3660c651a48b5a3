"""CriticalKV: selection by the size of a token's output as well (Feng et al. 2025, arXiv 2502.03805, algorithm 1)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from acckv_jax.budget import floored_share
from acckv_jax.cache import LayerCache
from acckv_jax.policy import Context
from acckv_jax.selection import top_k_mask
from acckv_jax.wrappers.ada_kv import AdaKV
from acckv_jax.wrappers.base import Wrapper
from acckv_jax.wrappers.protected import check_selects_alone

BLOCK = 64
"""Slots whose outputs are computed at once: they are D numbers for each query head."""


@dataclasses.dataclass(frozen=True)
class CriticalKV(Wrapper):
    """Chooses one part of a head's slots by the inner policy's scores, the others by scores times `|W_O v|`.

    `|W_O v|` is the L1 norm of what a token's value adds to the layer's output through a query head, mean over the
    query heads of the KV head. How many slots a head keeps is what the inner policy would keep, so
    `CriticalKV(AdaKV(...))` is the paper's Ada-KV variant. Between decode steps W_O is not at hand: eviction is
    the inner policy's.

    Attributes:
        inner: the policy inside, which scores by attention.
        first_share: share of a head's slots that are chosen by the scores alone.
        epsilon: is added to the scores before they are multiplied.

    Raises:
        ValueError: if `first_share` is no share, `epsilon` is negative, the policy inside reads no attention, or
            something inside but `AdaKV` selects slots by a rule of its own, or protects some: `Protected` belongs
            outside.

    Example:
        >>> import acckv_jax as kv
        >>> kv.CriticalKV(kv.SnapKV(budget=0.2)).needs
        ('output_weights',)
    """

    first_share: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.first_share <= 1.0:
            raise ValueError(f"first_share is a share of a head's slots from 0 to 1, not {self.first_share}.")
        if self.epsilon < 0:
            raise ValueError(f"epsilon is added to attention, and is at least 0, not {self.epsilon}.")
        if not self.inner.queries and "unrotated_q" not in self.inner.needs:
            raise ValueError(
                f"CriticalKV multiplies attention by the size of outputs, and {type(self.inner).__name__} reads no "
                "attention; wrap a policy that does, such as SnapKV."
            )
        check_selects_alone(self, beside=(AdaKV,))

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """W_O, beside what the inner policy needs."""
        return tuple(dict.fromkeys((*self.inner.needs, "output_weights")))

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """As many slots of each head as the inner policy keeps, in two steps; infinite scores come first in both."""
        slots = self.inner.select(scores, layer, context).sum(-1, dtype=jnp.int32)  # [B, K]
        if context.keep is not None:
            scores = jnp.where(context.keep, jnp.inf, scores)
        first = top_k_mask(scores, layer.valid, floored_share(self.first_share, slots, layer.slots))
        product = (scores + self.epsilon) * output_norms(layer.values, context.inputs["output_weights"])
        product = jnp.where(jnp.isfinite(scores), product, scores)
        return first | top_k_mask(product, layer.valid & ~first, slots - first.sum(-1, dtype=jnp.int32))

    def evict(self, layer: LayerCache, context: Context) -> LayerCache:
        """As the inner policy."""
        return self.inner.evict(layer, context)


def output_norms(values: Float[Array, "B K S H"], weights: Float[Array, "N H D"]) -> Float[Array, "B K S"]:
    """L1 norms of W_O v, mean over the N / K query heads of a KV head, in float32."""
    rows, kv_heads, slots, size = values.shape
    kind = jnp.promote_types(values.dtype, weights.dtype)
    heads = PartitionSpec(jax.typeof(values).sharding.spec[1], None, None)
    if jax.typeof(weights).sharding.spec != heads:  # an Explicit mesh may divide D as it does rows
        weights = jax.sharding.reshard(weights, heads)
    grouped = weights.reshape(kv_heads, -1, *weights.shape[1:]).astype(kind)  # [K, G, H, D]

    def of_block(block: Float[Array, "B K s H"]) -> Float[Array, "B K s"]:
        outputs = jnp.einsum("bksh,kghd->bkgsd", block.astype(kind), grouped, preferred_element_type=jnp.float32)
        return jnp.abs(outputs).sum(-1).mean(2)

    count = -(-slots // BLOCK)
    padded = jnp.pad(values, ((0, 0), (0, 0), (0, count * BLOCK - slots), (0, 0)))
    blocks = padded.reshape(rows, kv_heads, count, BLOCK, size).transpose(2, 0, 1, 3, 4)
    norms = jax.lax.map(of_block, blocks).transpose(1, 2, 0, 3)  # [B, K, blocks, s]
    return norms.reshape(rows, kv_heads, -1)[..., :slots]

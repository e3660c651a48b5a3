"""Half of the slots for the question, half for all others: a policy's scores beside those of a second pass."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.kernels.shards import on_shards, typed_like
from acckv_jax.policies.kvzip import KVzip
from acckv_jax.policy import Context
from acckv_jax.queries import QuerySet
from acckv_jax.wrappers.base import Wrapper


@dataclasses.dataclass(frozen=True)
class Retold(Wrapper):
    """Ranks tokens by the inner policy and by KVzip's second pass, and takes the best of both lists in turn.

    Of however many slots, `share` hold the best of the second pass, in which the model tells what the prompt says, and
    the others the inner policy's best; tokens that are in both lists make room for further ones. A policy that reads
    the question so keeps what other questions will ask for. Between decode steps the inner policy evicts alone.

    Attributes:
        inner: the policy inside.
        share: of the slots, for the second pass.

    Raises:
        ValueError: if `share` is not between 0 and 1.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Retold(kv.SnapKV(budget=0.2)).second_pass
        True
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share is a part of the slots from 0 to 1, not {self.share}.")

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The inner policy's, and the second pass."""
        return tuple(dict.fromkeys((*self.inner.queries, *KVzip().queries)))

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The larger of both scores, which fall with the rank in each list; infinite scores stay as they are."""
        scores = self.inner.token_scores(layer, context)
        retold = context.attention_sums(KVzip().queries[0])
        rows, kv_heads, _ = scores.shape

        def best(one: Float[Array, "B K S"]) -> Float[Array, "B K S"]:
            # Compilers do not divide a sort over devices, even where it is one for each row and head.
            seen = jnp.where(layer.valid, one, -jnp.inf)
            ranks = on_shards(_ranks, ("BKS",), "BKS", seen, rows=rows, kv_heads=kv_heads)
            return 1.0 / (1.0 + typed_like(ranks, scores).astype(jnp.float32))

        mixed = jnp.maximum((1 - self.share) * best(scores), self.share * best(retold))
        mixed = jnp.where(jnp.isfinite(scores), mixed, scores)
        return jnp.where(jnp.isposinf(retold), jnp.inf, mixed)


def _ranks(scores: Float[Array, "B K S"]) -> Int[Array, "B K S"]:
    """0 for the largest of a head."""
    return jnp.argsort(jnp.argsort(-scores, axis=-1), axis=-1)

"""TOVA: attention of the prompt's last row, one score for all heads (Oren et al. 2024, arXiv 2401.06104)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet


@dataclasses.dataclass(frozen=True)
class TOVA(CachePolicy):
    """Keeps the last token and, of the others, those that it attends to most; the same ones in all heads of a layer.

    Example:
        >>> import acckv_jax as kv
        >>> kv.TOVA(budget=0.2).window
        1
    """

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The last row of the prompt."""
        return (QuerySet(last=1),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Attention of the last row, mean over all query heads; the last token itself comes first."""
        mean = context.attention_sums(self.queries[0]).mean(1, keepdims=True)
        last = layer.index == (context.length - 1)[:, None, None]
        return jnp.where(last, jnp.inf, mean)

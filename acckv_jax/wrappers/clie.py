"""Cross-layer importance estimation of PureKV (arXiv 2510.25600, section 3.1): attention of lower layers only."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.policy import Context, scores_of
from acckv_jax.queries import QuerySet
from acckv_jax.wrappers.base import Wrapper


@dataclasses.dataclass(frozen=True)
class CLIE(Wrapper):
    """Scores upper layers by the attention of the last lower one and the L2 norm of their own values.

    The first `scored_layers` layers are the inner policy's. In the others `prefill` sums no attention. The inner policy
    is given what the last scored layer's sums are on average over its KV heads, as heads of two layers do not
    correspond, and its scores are multiplied by the norms of the layer's own values.

    Attributes:
        inner: the policy inside, which reads sums of attention.
        scored_layers: lower layers, whose attention is summed.

    Raises:
        ValueError: if `scored_layers` is below 1, or the policy inside reads no sums.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.CLIE(kv.H2O(budget=0.2), scored_layers=2)
        >>> [len(policy.queries_in(layer)) for layer in range(4)]
        [1, 1, 0, 0]
    """

    scored_layers: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scored_layers < 1:
            raise ValueError(f"scored_layers is a number of layers, at least 1, not {self.scored_layers}.")
        if not self.inner.queries:
            raise ValueError(
                f"CLIE estimates sums of attention, and {type(self.inner).__name__} reads none; wrap a policy that "
                "does, such as SnapKV."
            )

    def check_layers(self, num_layers: int) -> None:
        """There must be a layer above the scored ones."""
        super().check_layers(num_layers)
        if num_layers <= self.scored_layers:
            raise ValueError(
                f"CLIE sums the attention of {self.scored_layers} layers (scored_layers), and the decoder has "
                f"{num_layers}: choose fewer."
            )

    def queries_in(self, layer: int) -> tuple[QuerySet, ...]:
        """Those of the inner policy in lower layers, none in the others."""
        return self.inner.queries_in(layer) if layer < self.scored_layers else ()

    def init_carry(self, modality: Int[Array, "B S"]) -> Any:
        """Sums [B, S] of each query set, mean over the heads of the last scored layer, and the inner policy's carry."""
        return (jnp.zeros_like(modality, jnp.float32),) * len(self.queries), self.inner.init_carry(modality)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The inner policy's; in upper layers by the estimated attention, times the norms of the values."""
        scores = self.inner.token_scores(*self._estimated(layer, context))
        if context.queries:
            return scores
        norms = jnp.linalg.norm(layer.values.astype(jnp.float32), axis=-1)
        return jnp.where(jnp.isfinite(scores), scores * norms, scores)

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As the inner policy, by these scores; carries the last scored layer's sums on."""
        means, _ = context.carry
        if context.queries:
            means = tuple(sums.mean(1) for sums in context.sums)
        if context.scores is None:
            context = dataclasses.replace(context, scores=scores_of(self, "token_scores", layer, context))
        small, carry = self.inner.compress(*self._estimated(layer, context))
        return small, (means, carry)

    def _estimated(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Context]:
        """What the inner policy sees: of an upper layer, sums and accumulated attention of the last scored one."""
        means, carry = context.carry
        context = dataclasses.replace(context, carry=carry)
        if context.queries:
            return layer, context
        sums = tuple(jnp.zeros_like(layer.mass) + mean[:, None] for mean in means)
        context = dataclasses.replace(context, sums=sums, queries=self.queries)
        if self.mass_queries is not None:
            layer = dataclasses.replace(layer, mass=context.attention_sums(self.mass_queries))
        return layer, context

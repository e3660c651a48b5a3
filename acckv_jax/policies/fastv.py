"""FastV: the last token chooses early which media later layers keep (Chen et al. 2024, arXiv 2403.06764, section 4)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax.budget import TEXT_NEEDS, TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet, is_text


@dataclasses.dataclass(frozen=True)
class FastV(CachePolicy):
    """Keeps everything in the first `filter_layer` layers; in all later ones text, and the same media tokens in each.

    The prompt's last token chooses them by its attention in the last of the first layers. The budget is that of the
    later layers: of L layers, the cache holds (filter_layer + (L - filter_layer) * budget) / L of the full one.

    Attributes:
        filter_layer: layers that keep everything (K in the paper).

    Example:
        >>> import acckv_jax as kv
        >>> [kv.FastV(budget=0.2).capacity(1000, layer) for layer in range(4)]
        [1000, 1000, 200, 200]
    """

    filter_layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filter_layer < 1:
            raise ValueError(f"filter_layer must be at least 1 layer that keeps everything, not {self.filter_layer}.")

    def check_layers(self, num_layers: int) -> None:
        """There must be layers that drop something."""
        if num_layers <= self.filter_layer:
            raise ValueError(
                f"FastV keeps everything in the first {self.filter_layer} layers, and the decoder has {num_layers}; "
                f"set filter_layer to at most {num_layers - 1}."
            )

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Text must fit."""
        return np.maximum(counts.text, 1), TEXT_NEEDS

    def capacity(self, bucket: int, layer: int) -> int:
        """All slots of the bucket in the first layers, the budget's in the others."""
        return bucket if layer < self.filter_layer else super().capacity(bucket, layer)

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        """All tokens in the first layers, the budget's number in the others."""
        return jnp.where(layer < self.filter_layer, length, super().row_budget(length, bucket, layer))

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The last row of the prompt."""
        return (QuerySet(last=1),)

    def init_carry(self, modality: Int[Array, "B S"]) -> Float[Array, "B S"]:
        """The scores of the tokens, once the first layers are through."""
        return jnp.zeros(modality.shape, jnp.float32)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention of the last of the first layers; text comes first."""
        return jnp.where(is_text(layer.modality), jnp.inf, context.carry[:, None])

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """Keeps the best tokens; the first layers hand on their last row's attention, mean over all query heads."""
        own = context.attention_sums(self.queries[0]).mean(1)
        carry = jnp.where(context.layer < self.filter_layer, own, context.carry)
        return super().compress(layer, dataclasses.replace(context, carry=carry))

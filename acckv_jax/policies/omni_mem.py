"""OmniMem: novelty times importance, in budgets for sound and picture (Sun et al. 2026, arXiv 2606.07577, section 3).

The budgets of layers come from a calibration run, `acckv_jax.omni_mem_shares`, as the authors' do.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from acckv_jax.budget import TEXT_NEEDS, TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.merging import unit
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet, is_text
from acckv_jax.selection import top_k_mask


@dataclasses.dataclass(frozen=True)
class OmniMem(CachePolicy):
    """Keeps text, and of sound and picture, each in its own budget, the tokens that are new and attended to.

    A token is new if its layer's input is unlike those of the tokens before and after it. Its score is
    sqrt(1 - (cos(h_i, h_i-1) + cos(h_i, h_i+1)) / 2) * a_i^`exponent` with the attention a_i of all rows and heads, so
    that all KV heads keep the same tokens. What the text leaves is split by how hard each modality is to compress: the
    entropy of its attention, relative to that of equal attention, times its novelty (equations 11 to 13).

    Attributes:
        exponent: of the attention (the paper's lambda).
        video_prior: the split's weight of video against audio, before both are measured (the paper's r).

    Example:
        >>> import acckv_jax as kv
        >>> kv.OmniMem(budget=0.2).needs
        ('hidden_states',)
    """

    exponent: float = 0.02
    video_prior: float = 5.0
    needs: ClassVar[tuple[str, ...]] = ("hidden_states",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent < 0:
            raise ValueError(f"exponent must be at least 0, not {self.exponent}.")
        if self.video_prior <= 0:
            raise ValueError(f"video_prior is a weight above 0, not {self.video_prior}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The text must fit."""
        return np.maximum(counts.text, 1), TEXT_NEEDS

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """Every row counts once."""
        return (QuerySet(),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Novelty times importance; text comes first."""
        similarity, importance = self.measured(layer, context)
        novelty = jnp.sqrt(jnp.maximum(1.0 - similarity, 0.0)) * importance**self.exponent
        return jnp.where(is_text(layer.modality), jnp.inf, jnp.zeros_like(layer.mass) + novelty[:, None])

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """Text, and the best of both modalities in the shares of what it leaves."""
        sure = layer.valid & is_text(layer.modality)
        if context.keep is not None:
            sure |= layer.valid & context.keep
        video, audio = (layer.valid & ~sure & (layer.modality == kind) for kind in (Modality.VIDEO, Modality.AUDIO))
        # A budget that protected tokens of a wrapper have used up leaves nothing.
        left = jnp.maximum(context.budget[:, None] - sure.sum(-1, dtype=jnp.int32), 0)
        shown, heard = (one.sum(-1, dtype=jnp.int32) for one in (video, audio))
        share = self._video_share(layer, context)[:, None]
        slots = jnp.round(share * left.astype(jnp.float32)).astype(jnp.int32)
        slots = jnp.minimum(jnp.maximum(slots, left - heard), shown)
        return sure | top_k_mask(scores, video, slots) | top_k_mask(scores, audio, left - slots)

    def measured(self, layer: LayerCache, context: Context) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
        """Mean cosine of each token's layer input to both neighbours' (1 beyond the ends), and its attention."""
        similarity = neighbour_similarity(context.inputs["hidden_states"], layer.valid.any(1))
        return similarity, context.attention_sums(self.queries[0]).mean(1)

    def _video_share(self, layer: LayerCache, context: Context) -> Float[Array, " B"]:
        """[B] video's part of what is left for media."""
        similarity, importance = self.measured(layer, context)
        kinds = ((layer.modality == kind) & layer.valid for kind in (Modality.VIDEO, Modality.AUDIO))
        video, audio = (compressibility(similarity, importance, among.any(1)) for among in kinds)
        return video * self.video_prior / jnp.maximum(video * self.video_prior + audio, jnp.finfo(jnp.float32).tiny)


def neighbour_similarity(x: Float[Array, "B S D"], valid: Bool[Array, "B S"]) -> Float[Array, "B S"]:
    """Mean cosine of each token to the tokens before and after it, whatever padding lies between; 1 beyond the ends."""
    slots = jnp.zeros_like(valid, jnp.int32) + jnp.arange(valid.shape[1], dtype=jnp.int32)[None]
    latest = jax.lax.cummax(jnp.where(valid, slots, -1), axis=1)
    before = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-1)  # [B, S] slot of the token before, or -1
    directions = unit(x)
    earlier = jax.vmap(lambda rows, at: rows[at])(directions, jnp.maximum(before, 0))
    backward = jnp.where(before >= 0, (directions * earlier).sum(-1), 1.0)
    ends = jnp.where(valid & (before >= 0), before, valid.shape[1])
    forward = jax.vmap(lambda one, at, new: one.at[at].set(new, mode="drop"))(jnp.ones_like(backward), ends, backward)
    return (backward + forward) / 2


def compressibility(
    similarity: Float[Array, "B S"], importance: Float[Array, "B S"], among: Bool[Array, "B S"]
) -> Float[Array, " B"]:
    """[B] how many tokens a part of the prompt deserves, from 0 to about 1 (equation 11; 0 for at most one token).

    The entropy of its attention over that of equal attention, times one minus the mean similarity to neighbours.
    """
    number = among.sum(-1, dtype=jnp.int32).astype(jnp.float32)
    weight = jnp.where(among, importance, 0.0)
    share = weight / jnp.maximum(weight.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0).sum(-1)
    mean = jnp.where(among, similarity, 0.0).sum(-1) / jnp.maximum(number, 1.0)
    return jnp.where(number > 1, entropy * (1.0 - mean) / jnp.log(jnp.maximum(number, 2.0)), 0.0)

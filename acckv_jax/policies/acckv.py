"""AccKV as reconstructed from arXiv 2511.11106: redistribution, layer-adaptive focusing, merging, cross-calibration.

No official code is public. The steps follow the paper's abstract and one summary of it; where these are silent, the
choice is an option below, with the project's default. One prune per layer, right after that layer's prefill:

1. attention redistribution: the column sums of attention, weighted by row i + 1, divided by the rows that see a column;
2. layer-adaptive focusing: the modality that the text rows attend to more is the layer's high-priority one;
3. budget: text whole, the rest split between video and audio;
4. intra-modal integration: tokens not selected are merged into kept ones of their own modality;
5. cross-calibration: low-priority slots whose keys agree too little with the high-priority keys are dropped.
"""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TEXT_NEEDS, TokenCounts, rounded_share
from acckv_jax.cache import LayerCache, take_slots
from acckv_jax.merging import merged, nearest, unit, unrotated, weighted_means
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy, Context, flagged_scores, keep, scores_of
from acckv_jax.queries import QuerySet, is_text
from acckv_jax.selection import (
    chosen_slots,
    gather_slots,
    grouped_slots,
    scatter_slots,
    slot_numbers,
    top_k_mask,
)


@dataclasses.dataclass(frozen=True)
class AccKV(CachePolicy):
    """The options of AccKV. The defaults are the paper-faithful preset; `AccKV.plus` is the strongest variant found.

    Attributes:
        rows: query rows whose attention scores a token: all rows, or the text rows.
        n_min: smallest divisor of a column's sum, so that the last tokens are not over-rewarded by few rows.
        exclude_diagonal: leaves a token's attention to itself out of its score.
        priority_stat: attention by which a modality gains priority: raw, or redistributed like the scores.
        split: how the budget beside text is divided: jointly by W_m * s, by W_m, or by token counts.
        floor: share of that budget which `joint` (and the gate, see `floor_after_gate`) leaves each modality.
        k_min: slots that the other splits leave each modality.
        b_min: slots that must be left beside text.
        merge: what becomes of tokens not selected: joined to the nearest pivot, to one summary slot, or dropped.
        cross_modal_merge: ablation: pivots may come from the other modality.
        gate: which low-priority slots are dropped: cosine below `tau` (`centred`: after subtracting the mean key), the
            lowest `quantile`, or none.
        tau: threshold of the gate: 0.9 for Qwen2, 0.6 for Llama and SmolLM2.
        quantile: share of the low-priority slots that the quantile gate drops.
        floor_after_gate: gives a modality its floor back after the gate.
        refill: gives dropped slots to the next best high-priority tokens.
        unrotated_theta: base of the 1-D RoPE to undo before cosines are taken; None: keys as cached.
        log_multiplicity: decoding adds log(multiplicity) to a merged slot's logit (an extension).
        recent: generated tokens that a prune between decode steps never drops.

    Example:
        >>> import acckv_jax as kv
        >>> kv.AccKV(budget=0.2, tau=0.6).merge
        'pivot'
    """

    rows: Literal["all", "text"] = "all"
    n_min: int = 1
    exclude_diagonal: bool = False
    priority_stat: Literal["raw", "redistributed"] = "raw"
    split: Literal["joint", "weighted", "proportional"] = "joint"
    floor: float = 0.05
    k_min: int = 1
    b_min: int = 1
    merge: Literal["pivot", "summary", "none"] = "pivot"
    cross_modal_merge: bool = False
    gate: Literal["threshold", "quantile", "centred", "none"] = "threshold"
    tau: float = 0.9
    quantile: float = 0.25
    floor_after_gate: bool = False
    refill: bool = False
    unrotated_theta: float | None = None
    log_multiplicity: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]
    recent: int = 16
    can_evict: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_min < 1 or self.k_min < 0 or self.b_min < 0 or self.recent < 0:
            raise ValueError("n_min must be at least 1; k_min, b_min and recent at least 0.")
        if not 0.0 <= self.floor <= 0.5:
            raise ValueError(f"floor is a share of the budget for each of two modalities, 0 to 0.5, not {self.floor}.")
        if not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile is a share of the low-priority slots, 0 to 1, not {self.quantile}.")
        if self.unrotated_theta is not None and self.unrotated_theta <= 0:
            raise ValueError(f"unrotated_theta is the base of a RoPE, above 0, not {self.unrotated_theta}.")
        if self.cross_modal_merge and self.merge != "pivot":
            raise ValueError(f"cross_modal_merge needs merge='pivot', not {self.merge!r}.")

    @classmethod
    def plus(cls, **options: Any) -> Self:
        """The strongest variant found for SmolAV; any option can be overridden.

        Example:
            >>> import acckv_jax as kv
            >>> kv.AccKV.plus(budget=0.2).split
            'proportional'
        """
        preset = {"rows": "text", "n_min": 64, "split": "proportional", "gate": "none", "log_multiplicity": True}
        return cls(**(preset | options))

    @classmethod
    def omni_fit(cls, **options: Any) -> Self:
        """OmniFit's split of the budget, without merging and gate; any option can be overridden.

        Each modality gets slots by the mean attention of a text row to one of its tokens, over all heads; within it
        text rows choose for each head.

        Example:
            >>> import acckv_jax as kv
            >>> kv.AccKV.omni_fit(budget=0.2).merge
            'none'
        """
        preset: dict[str, Any] = {"rows": "text", "split": "weighted", "merge": "none", "gate": "none"}
        return cls(**(preset | options))

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Text and `b_min` further slots (with summary slots: one for each modality) must fit."""
        least = np.int64(self.b_min)
        if self.merge == "summary":
            least = np.maximum(least, (counts.video > 0).astype(int) + (counts.audio > 0))
        return np.maximum(counts.text + np.minimum(counts.video + counts.audio, least), 1), TEXT_NEEDS

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """Redistributed sums, raw sums of the text rows, and if need be redistributed sums of the text rows."""
        sets = [self._redistributed, self.mass_queries, *([self._priority] if self.priority_stat != "raw" else [])]
        return tuple(dict.fromkeys(sets))

    @property
    def mass_queries(self) -> QuerySet:
        """Raw attention of the text rows; decoding adds that of the generated tokens."""
        return QuerySet("text", exclude_diagonal=self.exclude_diagonal)

    @property
    def _redistributed(self) -> QuerySet:
        return QuerySet(self.rows, weight="position", exclude_diagonal=self.exclude_diagonal)

    @property
    def _priority(self) -> QuerySet:
        return QuerySet("text", weight="position", exclude_diagonal=self.exclude_diagonal)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Redistributed attention (step 1); text, which is kept whole, comes first."""
        score = context.attention_sums(self._redistributed) / self._share(layer)
        return jnp.where(is_text(layer.modality), jnp.inf, score)

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """Steps 1 to 5 on one layer. A selection from outside takes the place of step 3.

        Raises:
            ValueError: if there is one, and `merge` is "summary".
        """
        if context.chosen is not None and self.merge == "summary":
            raise ValueError(
                "AccKV with merge='summary' needs slots that a wrapper's own selection does not leave; use "
                "merge='pivot' or merge='none' inside this wrapper."
            )
        budget, capacity = context.budget, context.capacity
        score = scores_of(self, "token_scores", layer, context)
        layer = flagged_scores(layer, score)
        seen = _with_kept_as_text(layer, context)
        if self.priority_stat == "redistributed":
            weight = self._weights(layer, context.attention_sums(self._priority) / self._share(layer))
        else:
            weight = self._weights(layer, context.attention_sums(self.mass_queries))
        selected, whole = self._select(seen, score, weight, budget)
        selected = selected if context.chosen is None else context.chosen
        # A row's budget grows with its length; a head that a wrapper gives fewer slots than the others loses more.
        losses = max(1, layer.slots - capacity) if context.chosen is None else layer.slots
        chosen, owner = self._assign(seen, selected, capacity, losses)
        if self.gate != "none":
            high = jnp.where(whole, -1, _high_priority(weight))
            chosen, owner = self._calibrate(seen, score, high, selected, chosen, owner, budget, capacity)
        slots, kept, place = chosen_slots(chosen, capacity)
        target = _follow(place, owner, capacity)
        keys, values, count = merged(layer, target, capacity)
        pruned = take_slots(layer, slots, kept, reserved_slots=layer.reserved_slots)
        return dataclasses.replace(pruned, k=keys, v=values, multiplicity=count, budget=budget), context.carry

    def eviction_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The attention from text and generated tokens; text and the most recent generated tokens come first."""
        sure, _ = self._sure(_with_kept_as_text(layer, context), context.budget)
        return jnp.where(sure, jnp.inf, layer.mass)

    def evict(self, layer: LayerCache, context: Context) -> LayerCache:
        """Between decode steps: text whole, modality floors, recent tokens, and the largest accumulated mass."""
        if context.chosen is not None:
            return keep(layer, context.chosen, context)
        seen = _with_kept_as_text(layer, context)
        sure, free = self._sure(seen, context.budget)
        score = scores_of(self, "eviction_scores", layer, context)
        layer = flagged_scores(layer, score)
        sure |= self._best_of_each(seen, score, free)
        chosen = top_k_mask(jnp.where(sure, jnp.inf, score), seen.valid, context.budget)
        return keep(layer, chosen, context)

    def _sure(self, layer: LayerCache, budget: Int[Array, " B"]) -> tuple[Bool[Array, "B K S"], Int[Array, "B K"]]:
        """What eviction never drops, text and recent tokens, and how many slots of the budget are left beside it."""
        text = layer.valid & is_text(layer.modality)
        free = budget[:, None] - text.sum(-1, dtype=jnp.int32)
        generated = layer.valid & (layer.modality == Modality.GENERATED)
        recent_slots = jnp.minimum(self.recent, free // 2)
        recent = top_k_mask(layer.index.astype(jnp.float32), generated, recent_slots)
        return text | recent, free - recent_slots

    def _share(self, layer: LayerCache) -> Float[Array, "B K S"]:
        """max(n_min, counted rows at or after each column): the divisor that makes a sum a mean (step 1)."""
        counted = layer.valid if self.rows == "all" else layer.valid & is_text(layer.modality)
        later = jnp.flip(jnp.cumsum(jnp.flip(counted, -1), -1, dtype=jnp.int32), -1)
        if self.exclude_diagonal:
            later = later - counted.astype(jnp.int32)
        return jnp.maximum(later, self.n_min).astype(jnp.float32)

    def _weights(self, layer: LayerCache, sums: Float[Array, "B K S"]) -> Float[Array, "B 2"]:
        """W_Vd and W_Au of the layer (step 2), over all heads."""
        member = _media_group(layer)[..., None] == jnp.arange(2)[None, None, None]  # [B, K, S, 2]
        number = member.sum((1, 2), dtype=jnp.float32)
        mean = jnp.where(member, sums[..., None], 0.0).sum((1, 2)) / jnp.maximum(number, 1.0)
        total = mean.sum(-1, keepdims=True)
        share = mean / jnp.where(total > 0, total, 1.0)
        alone = (number > 0).astype(jnp.float32)
        both = alone.sum(-1, keepdims=True) == 2
        none = alone.sum(-1, keepdims=True) == 0
        return jnp.where(none | (both & (total <= 0)), 0.5, jnp.where(both, share, alone))

    def _floor(self, size: Int[Array, "B K"], free: Int[Array, "B K"], most: int) -> Int[Array, "B K"]:
        """Slots that a modality of `size` tokens is sure of among `free` slots, which are at most `most`."""
        if self.floor == 0:
            return jnp.zeros_like(size)
        share = jnp.maximum(rounded_share(self.floor, free, most), 1)
        return jnp.minimum(size, jnp.minimum(free // 2, share))

    def _best_of_each(
        self, layer: LayerCache, score: Float[Array, "B K S"], free: Int[Array, "B K"]
    ) -> Bool[Array, "B K S"]:
        """The tokens of best score that a modality's floor is made of."""
        video, audio = _members(layer)
        sizes = (m.sum(-1, dtype=jnp.int32) for m in (video, audio))
        best_video, best_audio = (
            top_k_mask(score, m, self._floor(n, free, layer.slots)) for m, n in zip((video, audio), sizes, strict=True)
        )
        return best_video | best_audio

    def _select(
        self, layer: LayerCache, score: Float[Array, "B K S"], weight: Float[Array, "B 2"], budget: Int[Array, " B"]
    ) -> tuple[Bool[Array, "B K S"], Bool[Array, "B K 1"]]:
        """Tokens kept as they are or as pivots (step 3), and which rows keep everything."""
        video, audio = _members(layer)
        free = _free(layer, budget, summary=self.merge == "summary")
        if self.split == "joint":
            weighted = jnp.where(video, weight[:, 0][:, None, None], weight[:, 1][:, None, None]) * score
            weighted = jnp.where(self._best_of_each(layer, score, free), jnp.inf, weighted)
            media = top_k_mask(weighted, video | audio, free)
        else:
            videos, audios = (m.sum(-1, dtype=jnp.int32) for m in (video, audio))
            if self.split == "weighted":
                wanted = jnp.round(weight[:, :1] * free.astype(jnp.float32)).astype(jnp.int32)
            else:
                wanted = _exact_share(videos, audios, free)
            least_video, least_audio = (jnp.minimum(jnp.minimum(self.k_min, n), free // 2) for n in (videos, audios))
            slots = jnp.clip(
                wanted,
                jnp.maximum(least_video, free - audios),
                jnp.minimum(videos, free - least_audio),
            )
            media = top_k_mask(score, video, slots) | top_k_mask(score, audio, free - slots)
        whole = ((video | audio).sum(-1) <= _free(layer, budget, summary=False))[..., None]
        text = layer.valid & is_text(layer.modality)
        return jnp.where(whole, layer.valid, text | media), whole

    def _assign(
        self, layer: LayerCache, selected: Bool[Array, "B K S"], capacity: int, losses: int
    ) -> tuple[Bool[Array, "B K S"], Int[Array, "B K S"]]:
        """Slots that stay (selected ones, and one for each summary), and the slot that every token goes to (step 4).

        At most `losses` tokens are not selected.
        """
        group, none = _media_group(layer), layer.slots
        slot = slot_numbers(group)
        lost = (group >= 0) & ~selected
        owner = jnp.where(selected, slot, none)
        if self.merge == "summary":
            for g in (0, 1):
                mine = lost & (group == g)
                last = jnp.max(jnp.where(mine, slot, -1), axis=-1, keepdims=True)
                selected = selected | (mine & (slot == last))
                owner = jnp.where(mine, last, owner)
        elif self.merge == "pivot":
            view, kinds = self._view(layer), 1 if self.cross_modal_merge else 2
            kind = jnp.minimum(group, kinds - 1)
            rows, is_row, _ = grouped_slots(jnp.where(lost, kind, -1), kinds, losses)
            pivots, is_pivot, _ = grouped_slots(jnp.where(selected, kind, -1), kinds, capacity)
            to = nearest(
                gather_slots(view, rows),
                gather_slots(view, pivots),
                jnp.where(is_row, gather_slots(kind, rows), -1),
                jnp.where(is_pivot, gather_slots(kind, pivots), -2),
            )
            padded = jnp.pad(pivots, ((0, 0), (0, 0), (0, 1)), constant_values=none)
            owner = scatter_slots(owner, jnp.where(is_row, rows, none), gather_slots(padded, to))
        return selected, owner

    def _view(self, layer: LayerCache) -> Float[Array, "B K S H"]:
        """Keys as cosines see them."""
        if self.unrotated_theta is None:
            return layer.keys
        return unrotated(layer.keys, layer.index, self.unrotated_theta)

    def _calibrate(
        self,
        layer: LayerCache,
        score: Float[Array, "B K S"],
        high: Int[Array, "B K 1"],
        selected: Bool[Array, "B K S"],
        chosen: Bool[Array, "B K S"],
        owner: Int[Array, "B K S"],
        budget: Int[Array, " B"],
        capacity: int,
    ) -> tuple[Bool[Array, "B K S"], Int[Array, "B K S"]]:
        """Drops low-priority slots by their agreement with the high-priority keys (step 5), and refills."""
        group = _media_group(layer)
        is_high = (group >= 0) & (group == high)
        low = chosen & (group == 1 - high) & (high >= 0) & is_high.any(-1, keepdims=True)
        cosine = self._agreement(layer, is_high, group >= 0, chosen, owner, capacity)
        if self.gate == "quantile":
            number = low.sum(-1, dtype=jnp.int32)
            dropped = low & ~top_k_mask(cosine, low, number - rounded_share(self.quantile, number, layer.slots))
        else:
            dropped = low & (cosine < self.tau)
        if self.floor_after_gate:
            free = _free(layer, budget, summary=self.merge == "summary")
            tokens = low & selected
            size = jnp.sum(group == 1 - high, -1, dtype=jnp.int32)
            least = jnp.minimum(self._floor(size, free, layer.slots), tokens.sum(-1, dtype=jnp.int32))
            missing = least - (tokens & ~dropped).sum(-1, dtype=jnp.int32)
            dropped = dropped & ~top_k_mask(score, tokens & dropped, missing)
        if not self.refill:
            return chosen & ~dropped, owner
        refilled = top_k_mask(score, is_high & ~selected, dropped.sum(-1, dtype=jnp.int32))
        slot = slot_numbers(owner)
        owner = jnp.where(refilled, slot, owner)
        if self.merge == "summary":
            left = is_high & ~selected & ~refilled
            last = jnp.max(jnp.where(left, slot, -1), axis=-1, keepdims=True)
            owner = jnp.where(left, last, owner)
            chosen = jnp.where(is_high & ~selected, left & (slot == last), chosen)
        return (chosen & ~dropped) | refilled, owner

    def _agreement(
        self,
        layer: LayerCache,
        is_high: Bool[Array, "B K S"],
        is_media: Bool[Array, "B K S"],
        chosen: Bool[Array, "B K S"],
        owner: Int[Array, "B K S"],
        capacity: int,
    ) -> Float[Array, "B K S"]:
        """Mean cosine of each chosen slot's merged key with all high-priority keys of the prompt."""
        view = self._view(layer).astype(jnp.float32)
        _, _, place = chosen_slots(chosen, capacity)
        keys, _ = weighted_means(view, layer, _follow(place, owner, capacity), capacity)
        if self.gate == "centred":
            number = jnp.maximum(is_media.sum(-1), 1)[..., None, None].astype(jnp.float32)
            centre = jnp.where(is_media[..., None], view, 0.0).sum(2, keepdims=True) / number
            view, keys = view - centre, keys - centre
        number = jnp.maximum(is_high.sum(-1), 1)[..., None].astype(jnp.float32)
        mean = jnp.where(is_high[..., None], unit(view), 0.0).sum(2) / number  # [B, K, H]
        cosine = jnp.einsum("bkch,bkh->bkc", unit(keys), mean)
        return gather_slots(cosine, jnp.minimum(place, capacity - 1))


def _with_kept_as_text(layer: LayerCache, context: Context) -> LayerCache:
    """The layer as the choice of slots sees it: what must stay counts as text, which is kept whole."""
    if context.keep is None:
        return layer
    return dataclasses.replace(layer, modality=jnp.where(context.keep, jnp.int8(Modality.TEXT), layer.modality))


def _media_group(layer: LayerCache) -> Int[Array, "B K S"]:
    """0 for video, 1 for audio, -1 for anything else."""
    modality = jnp.where(layer.valid, layer.modality, jnp.int8(Modality.TEXT))
    zero = jnp.zeros_like(modality, jnp.int32)
    return jnp.where(modality == Modality.VIDEO, zero, jnp.where(modality == Modality.AUDIO, zero + 1, zero - 1))


def _members(layer: LayerCache) -> tuple[Bool[Array, "B K S"], Bool[Array, "B K S"]]:
    """Which slots hold video, and which hold audio."""
    group = _media_group(layer)
    return group == 0, group == 1


def _high_priority(weight: Float[Array, "B 2"]) -> Int[Array, "B 1 1"]:
    """0 or 1 for the modality of larger W, -1 on a tie."""
    video, audio = weight[:, 0], weight[:, 1]
    return jnp.where(video > audio, 0, jnp.where(audio > video, 1, -1))[:, None, None]


def _free(layer: LayerCache, budget: Int[Array, " B"], *, summary: bool) -> Int[Array, "B K"]:
    """Slots of the budget beside text, and beside summary slots if `summary`."""
    free = budget[:, None] - (layer.valid & is_text(layer.modality)).sum(-1, dtype=jnp.int32)
    if summary:
        group = _media_group(layer)
        free = free - sum((group == g).any(-1).astype(jnp.int32) for g in (0, 1))
    return free


def _exact_share(video: Int[Array, "B K"], audio: Int[Array, "B K"], free: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """round(free * video / (video + audio)), half to even, for up to 2**29 tokens: the product would overflow.

    Long division, one bit of `video` after the other.
    """
    total = jnp.maximum(video + audio, 1)

    def longer(number: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        quotient, rest = carry
        rest = 2 * rest + ((video >> (30 - number)) & 1) * free
        return 2 * quotient + rest // total, rest % total

    quotient, rest = jax.lax.fori_loop(0, 31, longer, (jnp.zeros_like(free), jnp.zeros_like(free)))
    up = (2 * rest > total) | ((2 * rest == total) & (quotient % 2 == 1))
    return quotient + up.astype(jnp.int32)


def _follow(place: Int[Array, "B K S"], owner: Int[Array, "B K S"], capacity: int) -> Int[Array, "B K S"]:
    """The place of each token's owner; `capacity` (nowhere) for tokens without one."""
    padded = jnp.pad(place, ((0, 0), (0, 0), (0, 1)), constant_values=capacity)
    return gather_slots(padded, owner)

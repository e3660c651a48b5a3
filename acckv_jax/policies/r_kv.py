"""R-KV: attention of the recent rows against redundancy of keys, while decoding (Cai et al. 2025, arXiv 2505.24133)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.merging import in_blocks, unit
from acckv_jax.policies.snapkv import pooled
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.recent import recent_count
from acckv_jax.selection import add_to_slots, gather_slots, slot_numbers


@dataclasses.dataclass(frozen=True)
class RKV(CachePolicy):
    """Keeps the last tokens and, of the others, those that these attend to and whose keys are not like other keys.

    The prompt and what is generated are pruned by the same rule: it is made for long answers, whose tokens repeat each
    other. The score is `attention_weight` * attention - (1 - `attention_weight`) * redundancy (section 3).

    Attributes:
        evict_every: decode steps between two prunes.
        window_size: last tokens, whose queries are read; they are kept.
        kernel_size: tokens over which the largest attention counts (odd).
        attention_weight: share of attention in the score, against redundancy.
        threshold: cosine similarity above which two keys are alike.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.RKV(budget=1024)
        >>> policy.recent_queries, policy.reserved_slots(new_tokens=10_000)
        (8, 128)
    """

    evict_every: int = 128
    window_size: int = 8
    kernel_size: int = 7
    attention_weight: float = 0.07
    threshold: float = 0.5
    can_evict: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size must be at least 1, not {self.window_size}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {self.kernel_size}.")
        if not 0.0 <= self.attention_weight <= 1.0:
            raise ValueError(f"attention_weight is a share from 0 to 1, not {self.attention_weight}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The window must fit."""
        return self.window_size, "RKV's window (window_size can be made smaller) needs"

    @property
    def recent_queries(self) -> int:
        """Those of the window."""
        return self.window_size

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Attention against redundancy; the window itself comes first.

        Raises:
            ValueError: if the cache holds no recent queries: it was pruned by another policy.
        """
        if recent_count(layer) != self.window_size:
            raise ValueError(
                f"RKV reads the last {self.window_size} queries, and this cache holds {recent_count(layer)} of them: "
                "prune the prompt by the same policy that decodes."
            )
        window = layer.index >= (context.length - self.window_size)[:, None, None]
        others = layer.valid & ~window
        attention = self._attention(layer, others, context.length)
        neighbours = pooled(
            attention, jnp.cumsum(others, -1, dtype=jnp.int32) - 1, others, self.kernel_size, largest=True
        )
        share = self.attention_weight
        score = share * neighbours - (1 - share) * redundancy(layer.keys, layer.valid, self.threshold)
        return jnp.where(window, jnp.inf, jnp.where(others, score, 0.0))

    def _attention(
        self, layer: LayerCache, others: Bool[Array, "B K S"], length: Int[Array, " B"]
    ) -> Float[Array, "B K S"]:
        """Mean over the recent rows of their attention to `others` alone, by the largest logit of a group's heads."""
        queries = layer.recent_queries
        assert queries is not None
        rows, kv_heads, _, size = layer.keys.shape
        grouped = queries.reshape(rows, kv_heads, -1, self.window_size, size)
        logits = jnp.einsum("bkgth,bksh->bkgts", grouped, layer.keys, preferred_element_type=jnp.float32) * size**-0.5
        logits = jnp.where(others[:, :, None], logits.max(2), jnp.finfo(jnp.float32).min)
        known = jnp.arange(self.window_size)[None] >= self.window_size - length[:, None]  # [B, T]: a row may be shorter
        attention = jnp.where(known[:, None, :, None], jax.nn.softmax(logits, axis=-1), 0.0).sum(2)
        return attention / jnp.minimum(length, self.window_size).astype(jnp.float32)[:, None, None]


def redundancy(keys: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], threshold: float) -> Float[Array, "B K S"]:
    """Softmax over the valid slots of how like other keys each key is: the mean cosine with all of them.

    Of the keys alike to one (cosine above `threshold`) the most recent is let off: its cosine with that key counts as
    zero, so that one of several repeated tokens stays. A key without any like it lets off the first slot, as the
    authors' code does.
    """
    keys = jnp.where(valid[..., None], unit(keys), 0.0)
    slots = slot_numbers(valid)
    first = valid.argmax(-1, keepdims=True).astype(jnp.int32)
    found = _last_alike(keys, valid, threshold)
    target = jnp.where(found < 0, first, found)
    cosine = (keys * gather_slots(keys, target)).sum(-1)
    let_off = jnp.where(valid & (target != slots), cosine, 0.0)
    total = (keys * keys.sum(2, keepdims=True)).sum(-1) - (keys * keys).sum(-1)
    total -= add_to_slots(jnp.zeros_like(total), target, let_off)
    mean = total / jnp.maximum(valid.sum(-1, keepdims=True, dtype=jnp.int32), 1).astype(jnp.float32)
    return jax.nn.softmax(jnp.where(valid, mean, jnp.finfo(jnp.float32).min), axis=-1)


def _last_alike(
    keys: Float[Array, "B K S H"], valid: Bool[Array, "B K S"], threshold: float, *, block: int = 256
) -> Int[Array, "B K S"]:
    """For each slot the last other one whose key is alike, -1 where there is none; no S x S array exists."""
    slots = keys.shape[2]
    # Numbers of slots take the place of groups: padding has none.
    keys, number = in_blocks(keys, jnp.where(valid, slot_numbers(valid), -1), block)

    def of_rows(rows: tuple[Array, Array]) -> Int[Array, "B K T"]:
        row_keys, row_number = rows

        def later(best: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
            column_keys, column_number = columns
            cosine = jnp.einsum("bkth,bkch->bktc", row_keys, column_keys)
            other = row_number[..., None] != column_number[:, :, None]
            alike = jnp.where((cosine > threshold) & other, column_number[:, :, None], -1)
            return jnp.maximum(best, alike.max(-1)), None

        return jax.lax.scan(later, jnp.full_like(row_number, -1), (keys, number))[0]

    found = jax.lax.map(of_rows, (keys, number))  # [blocks, B, K, block]
    return found.transpose(1, 2, 0, 3).reshape(*valid.shape[:2], -1)[..., :slots]

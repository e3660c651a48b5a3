"""SnapKV: pooled attention of the prompt's last rows, per KV head (Li et al. 2024, arXiv 2404.14469, section 4)."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet
from acckv_jax.selection import gather_slots, scatter_slots


@dataclasses.dataclass(frozen=True)
class SnapKV(CachePolicy):
    """Keeps the last `window_size` tokens and, of the others, those that these rows attend to most.

    Attributes:
        window_size: rows at the end of the prompt that observe, and are kept.
        kernel_size: tokens that a score is averaged over (odd), zeros beyond the ends.

    Example:
        >>> import acckv_jax as kv
        >>> kv.SnapKV(budget=0.2, window_size=16).queries
        (QuerySet(rows='all', last=16, weight='one', exclude_diagonal=False, reduce='sum'),)
    """

    window_size: int = 32
    kernel_size: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size must be at least 1, not {self.window_size}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {self.kernel_size}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The window must fit."""
        return self.window_size, f"{type(self).__name__}'s window (window_size can be made smaller) needs"

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The last rows of the prompt."""
        return (QuerySet(last=self.window_size),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Pooled attention of the window; the window itself comes first."""
        window = layer.index >= (context.length - self.window_size)[:, None, None]
        mean = context.attention_sums(self.queries[0]) / self.window_size
        score = jnp.where(window | ~layer.valid, 0.0, mean)
        return jnp.where(window, jnp.inf, pooled(score, layer.index, layer.valid, self.kernel_size))


def pooled(
    score: Float[Array, "B K S"], index: Int[Array, "B K S"], valid: Array, kernel: int, *, largest: bool = False
) -> Float[Array, "B K S"]:
    """Mean (or maximum) over `kernel` neighbouring tokens, by token index: padding between chunks is not a token."""
    slots, beyond = score.shape[-1], -jnp.inf if largest else 0.0
    at = jnp.where(valid, index, slots)
    dense = scatter_slots(jnp.full_like(score, beyond), at, score)
    half = kernel // 2
    padded = jnp.pad(dense, ((0, 0), (0, 0), (half, half)), constant_values=beyond)
    near = jnp.stack([padded[..., i : i + slots] for i in range(kernel)])
    return gather_slots(near.max(0) if largest else near.mean(0), jnp.minimum(at, slots - 1))

"""SnapKV: pooled attention of the prompt's last rows, per KV head (Li et al. 2024, arXiv 2404.14469, section 4)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import RowWeights
from acckv_jax.budget import TokenCounts, check_slots
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Rows
from acckv_jax.selection import pick, put, top


@dataclasses.dataclass(frozen=True)
class SnapKV(CachePolicy):
    """Keeps the last `window_size` tokens and, of the others, those that these rows attend to most.

    Attributes:
        window_size: rows at the end of the prompt that observe, and are kept.
        kernel_size: tokens that a score is averaged over (odd), zeros beyond the ends.
    """

    window_size: int = 32
    kernel_size: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_size < 1:
            raise ValueError(f"window_size must be at least 1, not {self.window_size}.")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, not {self.kernel_size}.")

    @property
    def window(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The observing rows must come in one chunk."""
        return self.window_size

    def check(self, counts: TokenCounts) -> None:
        """The window must fit."""
        need = "SnapKV's window (window_size can be made smaller) needs"
        check_slots(self.budget, counts, self.window_size, need)

    def row_weights(self, rows: Rows) -> RowWeights:
        """The last rows of the prompt count."""
        observing = rows.valid & (rows.index >= (rows.total - self.window_size)[:, None])
        return RowWeights(observing.astype(jnp.float32)[None] / self.window_size)

    def choose(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        budget: Int[Array, " B"],
        index: Int[Array, ""],
    ) -> Bool[Array, "B K S"]:
        """The window and the tokens of largest pooled score."""
        window = layer.index >= (length - self.window_size)[:, None, None]
        score = jnp.where(window | ~layer.valid, 0.0, sums[0])
        score = jnp.where(window, jnp.inf, pooled(score, layer.index, layer.valid, self.kernel_size))
        return top(score, layer.valid, budget)


def pooled(
    score: Float[Array, "B K S"], index: Int[Array, "B K S"], valid: Array, kernel: int
) -> Float[Array, "B K S"]:
    """Mean over `kernel` neighbouring tokens, by token index: padding between chunks does not count as a token."""
    slots = score.shape[-1]
    at = jnp.where(valid, index, slots)
    dense = put(jnp.zeros_like(score), at, score)
    half = kernel // 2
    padded = jnp.pad(dense, ((0, 0), (0, 0), (half, half)))
    mean = jnp.stack([padded[..., i : i + slots] for i in range(kernel)]).mean(0)
    return pick(mean, jnp.minimum(at, slots - 1))

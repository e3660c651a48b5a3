"""Expected attention: what future queries will attend to, if they are as the prompt's (arXiv 2510.00636, section 3)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context


@dataclasses.dataclass(frozen=True)
class ExpectedAttention(CachePolicy):
    """Keeps the tokens whose expected attention, times the norm of their values, is largest; and the first ones.

    The queries of the prompt, before their rotation, have a mean and a covariance in each head. Rotated by the mean of
    the rotations of the positions to come, they are those of a Gaussian, under which the expectation of exp(q k) is
    known in closed form. It is normalised over the tokens, and averaged over the query heads of a KV head.

    Attributes:
        future_positions: how many positions after the prompt the rotation is averaged over.
        sinks: first tokens of the sequence, which are kept, and whose queries are left out.
        covariance: whether the queries vary; without it they are their mean.
        value_norm: whether the expectation is multiplied with the L2 norm of the value.
        epsilon: added to the expectation before.

    Example:
        >>> import acckv_jax as kv
        >>> kv.ExpectedAttention(budget=0.2).needs
        ('unrotated_q', 'rotary_frequencies')
    """

    future_positions: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norm: bool = True
    epsilon: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("unrotated_q", "rotary_frequencies")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.future_positions < 1:
            raise ValueError(f"future_positions must be at least 1, not {self.future_positions}.")
        if self.sinks < 0:
            raise ValueError(f"sinks is a number of tokens, at least 0, not {self.sinks}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The sinks must fit, and a token beside them."""
        return self.sinks + 1, "ExpectedAttention's sinks (sinks can be fewer) and one token need"

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Expected attention times the norm of the value; the sinks come first."""
        sink = layer.index < self.sinks
        seen = layer.valid & ~sink
        rows, kv_heads, slots, size = layer.keys.shape
        queries = context.inputs["unrotated_q"].reshape(rows, slots, kv_heads, -1, size)
        rotation = self._mean_rotation(context)
        keys = layer.keys.astype(jnp.float32)
        number = jnp.maximum(seen.sum(-1, dtype=jnp.int32), 1).astype(jnp.float32)[..., None]

        def expected(q: Float[Array, "B K S H"]) -> Float[Array, "B K S"]:
            q = jnp.where(seen[..., None], q.astype(jnp.float32), 0.0)
            mean = q.sum(2) / number
            logits = jnp.einsum("bksh,bkh->bks", keys, _rotated(mean, rotation)) * size**-0.5
            if self.covariance:
                centred = jnp.where(seen[..., None], q - mean[:, :, None], 0.0)
                covariance = jnp.einsum("bksi,bksj->bkij", centred, centred) / number[..., None]
                for _ in range(2):  # from the left and from the right
                    covariance = _rotated(covariance, rotation).swapaxes(2, 3)
                logits += jnp.einsum("bksi,bkij,bksj->bks", keys, covariance, keys) / (2 * size)
            return jax.nn.softmax(jnp.where(seen, logits, jnp.finfo(jnp.float32).min), axis=-1)

        # One query head of every group at a time: together they would hold the keys as often as a group has heads.
        score = jax.lax.map(expected, queries.transpose(3, 0, 2, 1, 4)).mean(0)
        if self.value_norm:
            score = (score + self.epsilon) * jnp.linalg.norm(layer.values.astype(jnp.float32), axis=-1)
        return jnp.where(sink, jnp.inf, score)

    def _mean_rotation(self, context: Context) -> tuple[Float[Array, "B H/2"], Float[Array, "B H/2"]]:
        """Cosines and sines, averaged over the positions to come (new text has the same one on all axes of M-RoPE)."""
        positions = context.next_position[:, None] + jnp.arange(self.future_positions, dtype=jnp.int32)[None]
        angles = positions[..., None].astype(jnp.float32) * context.inputs["rotary_frequencies"][None, None]
        return jnp.cos(angles).mean(1), jnp.sin(angles).mean(1)


def _rotated(x: Float[Array, "B K *N H"], rotation: tuple[Array, Array]) -> Float[Array, "B K *N H"]:
    """The pairs (i, i + H/2) of the last axis, turned."""
    cos, sin = (one.reshape(one.shape[0], *(1,) * (x.ndim - 2), -1) for one in rotation)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

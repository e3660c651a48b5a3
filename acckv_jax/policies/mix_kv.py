"""MixKV: importance and diversity, mixed by the redundancy of each head (Liu et al. 2025, arXiv 2510.20707)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from acckv_jax.cache import LayerCache
from acckv_jax.merging import unit
from acckv_jax.policies.snapkv import SnapKV
from acckv_jax.policy import Context

EPSILON = 1e-8
"""Added to divisors, as the authors' code does."""


@dataclasses.dataclass(frozen=True)
class MixKV(SnapKV):
    """Keeps the last `window_size` tokens and, of the others, those of largest r * diversity + (1 - r) * importance.

    Importance is SnapKV's pooled attention plus the norm of the value. Diversity is minus the cosine between a key and
    the mean of its head's keys of length one. Norm and diversity are rescaled to 0..1, and then to the mean of the
    attention. The redundancy r of a head is the mean cosine between two different keys.

    Attributes:
        window_size: rows at the end of the prompt that observe, and are kept.
        kernel_size: tokens that the attention is averaged over (odd), zeros beyond the ends.

    Example:
        >>> import acckv_jax as kv
        >>> kv.MixKV(budget=0.2, window_size=16).window
        16
    """

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """Diversity and importance, mixed; the window comes first."""
        attention = super().token_scores(layer, context)
        others = layer.valid & ~jnp.isposinf(attention)
        keys = jnp.where(layer.valid[..., None], unit(layer.keys), 0.0)
        number = layer.valid.sum(-1, keepdims=True, dtype=jnp.float32)
        mean_key = keys.sum(2) / jnp.maximum(number, 1.0)  # [B, K, H]
        redundancy = (number * (mean_key**2).sum(-1, keepdims=True) - 1.0) / jnp.maximum(number - 1.0, 1.0)
        diversity = _like(-(keys * mean_key[:, :, None]).sum(-1), attention, others)
        norm = _like(jnp.linalg.norm(layer.values.astype(jnp.float32), axis=-1), attention, others)
        mixed = redundancy * diversity + (1.0 - redundancy) * (attention + norm)
        return jnp.where(others, mixed, attention)


def _like(
    x: Float[Array, "B K S"], attention: Float[Array, "B K S"], among: Bool[Array, "B K S"]
) -> Float[Array, "B K S"]:
    """`x` rescaled to 0..1 and then to the mean of the attention, both over the slots `among`."""
    least = jnp.where(among, x, jnp.inf).min(-1, keepdims=True)
    most = jnp.where(among, x, -jnp.inf).max(-1, keepdims=True)
    share = jnp.where(among, (x - least) / (most - least + EPSILON), 0.0)
    number = jnp.maximum(among.sum(-1, keepdims=True, dtype=jnp.float32), 1.0)
    mean = jnp.where(among, attention, 0.0).sum(-1, keepdims=True) / number
    return share * mean / (share.sum(-1, keepdims=True) / number + EPSILON)

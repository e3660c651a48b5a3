"""Attention without a cache, as the reference for every cached run: all tokens at once, one mask."""

import jax
import jax.numpy as jnp


def dense_attend(*masks: jax.Array):
    """An `attend` for a whole sequence: layer number n sees masks[n] ([B, K, T, S] bool); K and V are repeated."""

    def attend(number, q, k, v, cache):
        group = q.shape[2] // k.shape[2]
        keys, values, mask = (jnp.repeat(x, group, axis=a) for x, a in ((k, 2), (v, 2), (masks[number], 1)))
        logits = jnp.einsum("btnh,bsnh->bnts", q, keys) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, values), cache

    return attend


def causal(length: jax.Array, tokens: int, kv_heads: int) -> jax.Array:
    """[B, K, T, T] mask of rows of ragged length."""
    place = jnp.arange(tokens)
    seen = (place[:, None] >= place[None, :])[None] & (place[None, None, :] < length[:, None, None])
    return jnp.repeat(seen[:, None], kv_heads, axis=1)

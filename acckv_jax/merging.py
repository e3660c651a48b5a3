"""Merging dropped tokens into kept slots: cosine assignment and multiplicity-weighted means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.gather import add


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """X / |x| in float32 (a zero vector stays zero)."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def nearest(
    keys: Float[Array, "B K S H"],
    pivots: Float[Array, "B K C H"],
    key_group: Int[Array, "B K S"],
    pivot_group: Int[Array, "B K C"],
    *,
    block: int = 512,
) -> Int[Array, "B K S"]:
    """The pivot of largest cosine within each key's group; ties go to the earlier pivot.

    Works through the keys in blocks, so that no S x C array exists for long prompts.

    Args:
        keys: [B, K, S, H].
        pivots: [B, K, C, H].
        key_group: [B, K, S] group ids; a negative id has no pivot.
        pivot_group: [B, K, C] likewise.
        block: keys per block (static).

    Returns:
        [B, K, S] number of the pivot, C where the group has none.
    """
    slots, capacity = keys.shape[2], pivots.shape[2]
    pivots = unit(pivots)

    def assign(rows: Array, groups: Array) -> Array:
        cosine = jnp.einsum("bkth,bkch->bktc", unit(rows), pivots)
        allowed = (groups[..., None] == pivot_group[:, :, None, :]) & (groups[..., None] >= 0)
        best = jnp.argmax(jnp.where(allowed, cosine, -jnp.inf), axis=-1).astype(jnp.int32)
        return jnp.where(allowed.any(-1), best, capacity)

    if slots <= block:
        return assign(keys, key_group)
    count = -(-slots // block)
    extra = count * block - slots
    keys = jnp.pad(keys, ((0, 0), (0, 0), (0, extra), (0, 0)))
    key_group = jnp.pad(key_group, ((0, 0), (0, 0), (0, extra)), constant_values=-1)
    blocks = (
        keys.reshape(*keys.shape[:2], count, block, -1).transpose(2, 0, 1, 3, 4),
        key_group.reshape(*key_group.shape[:2], count, block).transpose(2, 0, 1, 3),
    )
    out = jax.lax.map(lambda xs: assign(*xs), blocks)
    return out.transpose(1, 2, 0, 3).reshape(*key_group.shape)[..., :slots]


def weighted_means(
    x: Float[Array, "B K S H"], layer: LayerCache, target: Int[Array, "B K S"], capacity: int
) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C"]]:
    """Means of the rows of `x` that share a target, weighted by multiplicity, in float32.

    Args:
        x: one row per slot of `layer`.
        layer: gives valid flags and multiplicities.
        target: [B, K, S] place 0..C-1 that each slot goes to; C or more: nowhere.
        capacity: C.

    Returns:
        Means [B, K, C, H], and summed multiplicities [B, K, C]; zeros where nothing went.
    """
    weight = jnp.where(layer.valid, layer.multiplicity, 0.0)

    def total(values: Array) -> Array:
        return add(jnp.zeros_like(values[:, :, :capacity]), target, values)

    count = total(weight)
    return total(x.astype(jnp.float32) * weight[..., None]) / jnp.maximum(count, 1.0)[..., None], count


def merged(
    layer: LayerCache, target: Int[Array, "B K S"], capacity: int
) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C H"], Float[Array, "B K C"]]:
    """Keys and values [B, K, C, H] in the cache's types and multiplicities [B, K, C], merged by one assignment."""
    keys, count = weighted_means(layer.k, layer, target, capacity)
    values, _ = weighted_means(layer.v, layer, target, capacity)
    return keys.astype(layer.k.dtype), values.astype(layer.v.dtype), count

"""Merging dropped tokens into kept slots: cosine assignment and multiplicity-weighted means."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.selection import add_to_slots


def unit(x: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Vectors of length one, in float32 (a zero vector stays zero)."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def nearest(
    keys: Float[Array, "B K S H"],
    pivots: Float[Array, "B K C H"],
    key_group: Int[Array, "B K S"],
    pivot_group: Int[Array, "B K C"],
    *,
    block: int = 256,
) -> Int[Array, "B K S"]:
    """The pivot of largest cosine within each key's group; ties go to the earlier pivot.

    Works through blocks of keys and pivots, so that no S x C array exists for long prompts, and skips blocks without a
    common group: with keys and pivots in the order of their groups little is computed in vain.

    Args:
        keys: [B, K, S, H].
        pivots: [B, K, C, H].
        key_group: [B, K, S] group ids; a negative id has no pivot.
        pivot_group: [B, K, C] group ids of the pivots.
        block: keys and pivots per block (static).

    Returns:
        [B, K, S] number of the pivot, C where the group has none.
    """
    slots, capacity = keys.shape[2], pivots.shape[2]
    keys, key_group = in_blocks(unit(keys), key_group, block)
    pivots, pivot_group = in_blocks(unit(pivots), pivot_group, block)
    first = block * jnp.arange(len(pivots), dtype=jnp.int32)

    def assign(key: tuple[Array, Array]) -> Array:
        rows, groups = key

        def better(best: tuple[Array, Array], pivot: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            columns, kinds, start = pivot
            allowed = (groups[..., None] == kinds[:, :, None, :]) & (groups[..., None] >= 0)

            def compared(_: None) -> tuple[Array, Array]:
                cosine = jnp.where(allowed, jnp.einsum("bkth,bkch->bktc", rows, columns), -jnp.inf)
                most = cosine.max(-1)
                number = jax.lax.broadcasted_iota(jnp.int32, cosine.shape, 3)
                # Two plain reductions: argmax is several times slower on CPU.
                where = start + jnp.where(cosine == most[..., None], number, block).min(-1)
                return jnp.where(most > best[0], most, best[0]), jnp.where(most > best[0], where, best[1])

            return jax.lax.cond(allowed.any(), compared, lambda _: best, None), None

        none = jnp.full_like(groups, -jnp.inf, jnp.float32), jnp.full_like(groups, capacity, jnp.int32)
        return jax.lax.scan(better, none, (pivots, pivot_group, first))[0][1]

    out = jax.lax.map(assign, (keys, key_group))  # [blocks, B, K, block]
    return out.transpose(1, 2, 0, 3).reshape(*out.shape[1:3], -1)[..., :slots]


def in_blocks(x: Float[Array, "B K S H"], group: Int[Array, "B K S"], block: int) -> tuple[Array, Array]:
    """[N, B, K, block, H] and [N, B, K, block] for N blocks, padded with slots of no group."""
    count = -(-x.shape[2] // block)
    extra = count * block - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0)))
    group = jnp.pad(group, ((0, 0), (0, 0), (0, extra)), constant_values=-1)
    return (
        x.reshape(*x.shape[:2], count, block, -1).transpose(2, 0, 1, 3, 4),
        group.reshape(*group.shape[:2], count, block).transpose(2, 0, 1, 3),
    )


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
        return add_to_slots(jnp.zeros_like(values[:, :, :capacity]), target, values)

    count = total(weight)
    return total(x.astype(jnp.float32) * weight[..., None]) / jnp.maximum(count, 1.0)[..., None], count


def merged(
    layer: LayerCache, target: Int[Array, "B K S"], capacity: int
) -> tuple[Float[Array, "B K C H"], Float[Array, "B K C H"], Float[Array, "B K C"]]:
    """Keys and values [B, K, C, H] in the cache's types and multiplicities [B, K, C], merged by one assignment."""
    keys, count = weighted_means(layer.keys, layer, target, capacity)
    values, _ = weighted_means(layer.values, layer, target, capacity)
    return keys.astype(layer.keys.dtype), values.astype(layer.values.dtype), count


def unrotated(k: Float[Array, "B K S H"], index: Int[Array, "B K S"], theta: float) -> Float[Array, "B K S H"]:
    """Keys as they were before a rotation by their index (pairs (i, i + H/2), base `theta`), in float32."""
    size = k.shape[-1]
    frequencies = 1.0 / theta ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = index[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    first, second = jnp.split(k.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)

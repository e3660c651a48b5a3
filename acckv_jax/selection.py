"""Choosing slots by score without sorting, compaction in time order, and gathers and scatters along slots.

Ties go to the earlier slot. Gathers and scatters are double vmaps over rows and heads: on a mesh that divides rows and
KV heads nothing is moved.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from acckv_jax.sharding import sharded_like


def top_k_mask(
    scores: Float[Array, "B K S"],
    among: Bool[Array, "B K S"],
    count: Int[Array, " B"] | Int[Array, "B K"],
    *,
    over_heads: bool = False,
) -> Bool[Array, "B K S"]:
    """True for the `count` best slots of each row and head out of `among`, all of them if there are fewer.

    The lowest score that is still in is found bit by bit: 32 counts over the slots, several times faster than a sort.

    Args:
        scores: [B, K, S].
        among: [B, K, S] the slots to choose from.
        count: [B], the same for all heads of a row, or [B, K].
        over_heads: chooses `count` [B] slots out of all heads of a row together; ties go to the earlier head. On a mesh
            that divides the heads only counts are moved.
    """
    count = count.reshape(*count.shape, *(1,) * (3 - count.ndim))
    keys = _ordered(scores)
    axes = (1, 2) if over_heads else 2

    def refined(number: Int[Array, ""], threshold: UInt[Array, "B _ 1"]) -> UInt[Array, "B _ 1"]:
        trial = threshold | (jnp.uint32(1) << (31 - number).astype(jnp.uint32))
        enough = jnp.sum(among & (keys >= trial), axes, keepdims=True, dtype=jnp.int32) >= count
        return jnp.where(enough, trial, threshold)

    none = jnp.zeros_like(keys).sum(axes, keepdims=True, dtype=jnp.uint32)
    threshold = jax.lax.fori_loop(0, 32, refined, none)
    above, tied = among & (keys > threshold), among & (keys == threshold)
    left = count - above.sum(axes, keepdims=True, dtype=jnp.int32)
    if over_heads:
        left = left - _in_earlier_heads(tied)
    return above | (tied & (jnp.cumsum(tied, -1, dtype=jnp.int32) <= left))


def _in_earlier_heads(chosen: Bool[Array, "B K S"]) -> Int[Array, "B K 1"]:
    """How many slots of the heads before are chosen."""
    counts = chosen.sum(-1, dtype=jnp.int32)
    earlier = np.tri(counts.shape[1], k=-1, dtype=bool)[None]
    before = jnp.where(earlier, counts[:, None], 0).sum(-1, dtype=jnp.int32)
    return sharded_like(before, counts)[..., None]


def _ordered(scores: Float[Array, "*B"]) -> UInt[Array, "*B"]:
    """Unsigned integers in the order of the float32 scores; 0.0 and -0.0 are one."""
    scores = scores.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)
    sign = jnp.uint32(2**31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def chosen_slots(
    chosen: Bool[Array, "B K S"], capacity: int
) -> tuple[Int[Array, "B K C"], Bool[Array, "B K C"], Int[Array, "B K S"]]:
    """Slot numbers of the chosen slots in time order, padded to `capacity`.

    Returns:
        Slot numbers [B, K, C], whether each is one that was chosen, and for each slot the place [B, K, S] it has there
        (`capacity` for slots not chosen).
    """
    return grouped_slots(jnp.where(chosen, 0, -1), 1, capacity)


def grouped_slots(
    group: Int[Array, "B K S"], groups: int, capacity: int
) -> tuple[Int[Array, "B K C"], Bool[Array, "B K C"], Int[Array, "B K S"]]:
    """`chosen_slots` of several groups: those of group 0 first, each group in time order; negative ids are left out."""
    place, before = jnp.full_like(group, capacity), jnp.zeros_like(group[..., :1])
    for g in range(groups):
        member = group == g
        place = jnp.where(member, before + jnp.cumsum(member, axis=-1, dtype=jnp.int32) - 1, place)
        before = before + member.sum(-1, keepdims=True, dtype=jnp.int32)
    slot = slot_numbers(place)
    slots = scatter_slots(jnp.zeros_like(slot[..., :capacity]), place, slot)
    return slots, slot_numbers(slots) < before, place


def gather_slots(x: Array, at: Int[Array, "B K C"]) -> Array:
    """x[b, k, at[b, k, c]] for x [B, K, S] or [B, K, S, H]."""
    return jax.vmap(jax.vmap(lambda row, slots: row[slots]))(x, at)


def scatter_slots(into: Array, at: Int[Array, "B K S"], values: Array) -> Array:
    """`into` with values written at slots `at`; slots out of range are dropped."""
    return jax.vmap(jax.vmap(lambda row, slots, new: row.at[slots].set(new, mode="drop")))(into, at, values)


def add_to_slots(into: Array, at: Int[Array, "B K S"], values: Array) -> Array:
    """`into` with values added at slots `at`; slots out of range are dropped."""
    return jax.vmap(jax.vmap(lambda row, slots, new: row.at[slots].add(new, mode="drop")))(into, at, values)


def slot_numbers(like: Array) -> Int[Array, "B K S"]:
    """0, 1, 2, ... along the slots of a [B, K, S] array, sharded like it."""
    return jnp.zeros_like(like, jnp.int32) + jax.lax.broadcasted_iota(jnp.int32, like.shape, 2)

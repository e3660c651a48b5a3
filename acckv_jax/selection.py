"""Choosing slots by score: stable ranks, and compaction in time order. Ties go to the earlier slot."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.gather import put, slot_numbers


def rank_within(
    scores: Float[Array, "B K S"], group: Int[Array, "B K S"], groups: int
) -> tuple[Int[Array, "B K S"], Int[Array, "B K S"]]:
    """Ranks every slot among the slots of its group, highest score first.

    Args:
        scores: [B, K, S] finite scores or infinities.
        group: [B, K, S] group ids 0..groups-1; a negative id takes no part.
        groups: number of groups (static).

    Returns:
        Rank 0.. of each slot within its group (S for slots that take no part), and the size of each slot's group.
    """
    slots = scores.shape[-1]
    group = jnp.where(group < 0, groups, group).astype(jnp.int32)
    slot = slot_numbers(group)
    _, _, order = jax.lax.sort((group, -scores, slot), dimension=-1, num_keys=2, is_stable=True)
    place = put(jnp.zeros_like(slot), order, slot)
    start = size = jnp.zeros_like(group)
    before = jnp.zeros_like(group[..., :1])
    for g in range(groups):
        member = group == g
        count = member.sum(-1, keepdims=True, dtype=jnp.int32)
        start, size = jnp.where(member, before, start), jnp.where(member, count, size)
        before = before + count
    return jnp.where(group == groups, slots, place - start), size


def top(scores: Float[Array, "B K S"], among: Bool[Array, "B K S"], count: Int[Array, "B"]) -> Bool[Array, "B K S"]:
    """True for the `count` best slots of each row and head out of `among`."""
    rank, _ = rank_within(scores, jnp.where(among, 0, -1), 1)
    return rank < count[:, None, None]


def chosen_slots(
    chosen: Bool[Array, "B K S"], capacity: int
) -> tuple[Int[Array, "B K C"], Bool[Array, "B K C"], Int[Array, "B K S"]]:
    """Slot numbers of the chosen slots in time order, padded to `capacity`.

    Returns:
        Slot numbers [B, K, C], whether each is one that was chosen, and for each slot the place [B, K, S] it has there
        (`capacity` for slots not chosen).
    """
    place = jnp.where(chosen, jnp.cumsum(chosen, axis=-1, dtype=jnp.int32) - 1, capacity)
    slot = slot_numbers(place)
    slots = put(jnp.zeros_like(slot[..., :capacity]), place, slot)
    count = chosen.sum(-1, keepdims=True, dtype=jnp.int32)
    return slots, slot_numbers(slots) < count, place

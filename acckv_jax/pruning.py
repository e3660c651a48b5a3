"""Pruning a prompt by a policy: layer by layer while it is read, or afterwards what was scored."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from acckv_jax.cache import KVCache, LayerCache, reserve
from acckv_jax.policy import CachePolicy, Context, check_policy
from acckv_jax.queries import QuerySet
from acckv_jax.recent import recent_count
from acckv_jax.scored import Scored, listed
from acckv_jax.sharding import sharded_like
from acckv_jax.stacks import Stack, grouped, run_layers, stacks_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Room:
    """What a policy gives and is given in a layer. Neighbours with equal ones can be one stack.

    Attributes:
        capacity: slots that it leaves the layer (static).
        queries: the sets whose sums it is given (static).
    """

    capacity: int = dataclasses.field(metadata={"static": True})
    queries: tuple[QuerySet, ...] = dataclasses.field(metadata={"static": True})


def rooms_of(policy: CachePolicy, bucket: int, layers: Iterable[int]) -> list[Room]:
    """The rooms of layers, by their numbers."""
    return [Room(policy.capacity(bucket, layer), policy.queries_in(layer)) for layer in layers]


def prune(scored: Scored, policy: CachePolicy, *, reserved_slots: int = 0) -> KVCache:
    """Prunes a complete prompt by a policy; `scored` stays as it is, for other budgets and policies.

    Outside jit one compiled program serves all layers of equal size.

    Args:
        scored: the prompt.
        policy: one of those given to `score`, or any other that reads no more statistics than they do (static).
        reserved_slots: slots for new tokens (static).

    Raises:
        ValueError: if the prompt is not complete, or was not scored for what the policy reads.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, scored = kv.jitted.score(decoder, params, inputs, prompt, (kv.H2O(), kv.SnapKV(window_size=8)))
        >>> [kv.prune(scored, kv.H2O(budget=budget)).layers[0].slots for budget in (0.5, 16)]
        [32, 16]
    """
    check_policy(policy)
    policy = policy.for_layers(scored.cache.num_layers)
    check_reserved(reserved_slots)
    cache = scored.cache
    if not scored.complete:
        raise ValueError("only a complete prompt can be pruned: the last call of score needs complete=True.")
    if any(queries.rows == "probe" and queries not in scored.queries for queries in policy.queries):
        raise ValueError(f"{type(policy).__name__} reads a second pass over the prompt: call probe before prune.")
    missing: list[Any] = [queries for queries in policy.queries if queries not in scored.queries]
    missing += [name for name in policy.needs if name not in scored.inputs[0]]
    recent = policy.recent_queries > recent_count(cache.stacks[0])
    missing += [f"the last {policy.recent_queries} queries"] * recent
    if missing or policy.window > scored.window:
        raise ValueError(
            f"{type(policy).__name__} cannot prune by the sums of this prompt: it reads "
            f"{listed((*policy.queries, *policy.needs, *missing[-1:] * recent))}, and the prompt was scored for "
            f"{listed(scored.queries + tuple(scored.inputs[0]))}; name the policy when the prompt is scored."
        )
    pruned = []
    modality = cache.stacks[0].modality
    modality = modality[0] if cache.stacks[0].is_stack else modality
    carry = initial_carry(policy, modality.max(1))  # equal in all heads; heads may be divided
    for group in stacks_of(cache.stacks, scored.sums, scored.inputs):
        layer, sums, inputs = group.entries
        needed = {name: inputs[name] for name in policy.needs}
        rooms = rooms_of(policy, layer.slots, range(group.first, group.first + group.count))
        for first, count, room in grouped(rooms, scans=True):
            chosen = tuple(sums[scored.queries.index(queries)] for queries in room.queries)
            part = dataclasses.replace(group, entries=(layer, chosen, needed)).part(first, count)
            small, carry = _prune_stack(policy, part, carry, cache, cache.num_layers, room, reserved_slots)
            pruned.append(small)
    return owned(dataclasses.replace(cache, stacks=tuple(pruned)))


def owned(cache: KVCache) -> KVCache:
    """`cache` with buffers of its own: jit hands unchanged inputs on as outputs, and donating these ends the inputs."""
    return dataclasses.replace(cache, length=jnp.copy(cache.length), delta=jnp.copy(cache.delta))


def prune_layer(
    policy: CachePolicy,
    layer: LayerCache,
    sums: tuple[Array, ...],
    inputs: dict[str, Array],
    carry: Any,
    rows: KVCache,
    place: tuple[int | Array, int, Room],
    reserved_slots: int,
) -> tuple[LayerCache, Any]:
    """One layer, compressed, and the carry for the next one.

    Args:
        policy: the policy.
        layer: in full.
        sums: of the room's queries.
        inputs: that it needs.
        carry: of the layer before.
        rows: of which only lengths and positions are read.
        place: the layer's number, how many layers there are, and its room.
        reserved_slots: slots for new tokens.
    """
    number, num_layers, room = place
    context = Context(
        jnp.asarray(number, jnp.int32),
        rows.length,
        rows.next_position,
        policy.row_budget(rows.length, layer.slots, number),
        sums,
        carry,
        inputs,
        queries=room.queries,
        num_layers=num_layers,
        capacity=room.capacity,
    )
    return _compress(layer, context, policy, reserved_slots)


def _prune_stack(
    policy: CachePolicy,
    stack: Stack,
    carry: Any,
    rows: KVCache,
    num_layers: int,
    room: Room,
    reserved_slots: int,
) -> tuple[LayerCache, Any]:
    """Layers of one room, compressed one after the other."""
    if stack.count == 1:
        place = (stack.first, num_layers, room)
        layer, sums, inputs = stack.entries
        return prune_layer(policy, layer, sums, inputs, carry, rows, place, reserved_slots)
    rows = dataclasses.replace(rows, stacks=())
    return _scan_prune(stack, carry, rows, policy, num_layers, room, reserved_slots)


@functools.partial(jax.jit, static_argnames=("policy", "num_layers", "room", "reserved_slots"))
def _scan_prune(
    stack: Stack,
    carry: Any,
    rows: KVCache,
    policy: CachePolicy,
    num_layers: int,
    room: Room,
    reserved_slots: int,
) -> tuple[LayerCache, Any]:
    def one(_: tuple[()], number: Array, entries: tuple, carry: Any) -> tuple[tuple[()], LayerCache, Any]:
        layer, sums, inputs = entries
        place = (number, num_layers, room)
        return (), *prune_layer(policy, layer, sums, inputs, carry, rows, place, reserved_slots)

    _, (small,), carry = run_layers(one, (), (stack,), carry)
    return small, carry


@functools.partial(jax.jit, static_argnames=("policy", "reserved_slots"))
def _compress(layer: LayerCache, context: Context, policy: CachePolicy, reserved_slots: int) -> tuple[LayerCache, Any]:
    if policy.mass_queries in context.queries:
        layer = dataclasses.replace(layer, mass=context.attention_sums(policy.mass_queries))
    layer = _with_last_queries(layer, policy.recent_queries)
    small, carry = _checked(policy, policy.compress(layer, context), layer, context)
    small = _with_last_queries(small, policy.recent_queries if policy.evict_every else 0)
    return jax.tree.map(jnp.copy, (reserve(small, reserved_slots), carry))  # what is kept whole is copied: see `owned`


def _with_last_queries(layer: LayerCache, number: int) -> LayerCache:
    """Without those of the recent queries that nobody will read."""
    last = None if layer.recent_queries is None or not number else layer.recent_queries[:, :, -number:]
    return dataclasses.replace(layer, recent_queries=last)


def initial_carry(policy: CachePolicy, modality: Int[Array, "B S"]) -> Any:
    """`init_carry`, divided over a mesh as the slots are where it has an entry for each of them."""
    carry = policy.init_carry(modality)
    return jax.tree.map(lambda x: sharded_like(x, modality) if jnp.shape(x)[:2] == modality.shape else x, carry)


def _checked(policy: CachePolicy, found: Any, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
    """What `compress` returned, after a check; the carry is divided over a mesh as the one before.

    Raises:
        ValueError: if it is not a layer of the right size and a carry like the one before.
    """
    name = f"{type(policy).__name__}.compress"
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], LayerCache):
        raise ValueError(f"{name} returns a LayerCache and the next layer's carry, not {kinds(found)}.")
    small, carry = found
    slots = context.capacity + layer.reserved_slots
    if small.slots != slots:
        raise ValueError(
            f"{name} returned a layer of {small.slots} slots, and not of {slots}, its capacity(bucket, layer) and the "
            "slots reserved: gather the kept ones by acckv_jax.policy.keep."
        )
    if _forms(carry) != _forms(context.carry):
        raise ValueError(
            f"{name} returned a carry of {kinds(carry)} after one of {kinds(context.carry)}: structure, shapes and "
            "types are those of init_carry in all layers."
        )
    return small, jax.tree.map(lambda x, before: sharded_like(jnp.asarray(x), before), carry, context.carry)


def _forms(tree: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def kinds(tree: Any) -> str:
    """A tree with shapes for arrays and names of types for what is no container."""

    def kind(x: Any) -> str:
        return f"{jnp.result_type(x)}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__

    return str(jax.tree.map(kind, tree, is_leaf=lambda x: isinstance(x, LayerCache))).replace("'", "")


def check_reserved(reserved_slots: int) -> None:
    """Checks a number of reserved slots.

    Raises:
        ValueError: if it is negative.
    """
    if reserved_slots < 0:
        raise ValueError(f"reserved_slots is a number of slots, at least 0, not {reserved_slots}.")

"""The KV cache: an explicit pytree that every function takes and returns.

A slot is not a position. Slots hold rotated keys in time order; `index` says which token of the uncompressed sequence a
slot holds, and the row's `length` and `delta` say which rotary position comes next, however many slots were dropped.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.modality import Modality
from acckv_jax.selection import chosen_slots, pick


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's slots; K heads are never repeated for grouped queries.

    Attributes:
        k: [B, K, S, H] keys as cached (rotated).
        v: [B, K, S, H] values.
        index: [B, K, S] token index in the uncompressed sequence.
        modality: [B, K, S] ids of `Modality`.
        valid: [B, K, S] whether the slot holds anything.
        multiplicity: [B, K, S] number of tokens that were averaged into the slot.
        mass: [B, K, S] accumulated attention, mean over the query heads of the group.
        budget: [B] slots that the row may hold after pruning.
        fill: [] the next slot that `append` writes.
        finite: [B] false once a NaN or infinity was seen in the row, or a token was written without room.
        room: slots at the end that are kept for tokens to come (static).
    """

    k: Float[Array, "B K S H"]
    v: Float[Array, "B K S H"]
    index: Int[Array, "B K S"]
    modality: Int[Array, "B K S"]
    valid: Bool[Array, "B K S"]
    multiplicity: Float[Array, "B K S"]
    mass: Float[Array, "B K S"]
    budget: Int[Array, " B"]
    fill: Int[Array, ""]
    finite: Bool[Array, " B"]
    room: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def slots(self) -> int:
        """S, allocated slots."""
        return self.k.shape[2]


PER_SLOT = ("k", "v", "index", "modality", "valid", "multiplicity", "mass")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """All layers, and where each row is in its uncompressed sequence.

    Attributes:
        layers: one `LayerCache` per layer; their slot numbers may differ.
        length: [B] tokens seen so far, dropped ones included.
        delta: [B] rotary position of a new token minus its index (M-RoPE; 0 for plain RoPE).
    """

    layers: tuple[LayerCache, ...]
    length: Int[Array, " B"]
    delta: Int[Array, " B"]

    @property
    def next_position(self) -> Int[Array, " B"]:
        """[B] rotary position of the next token."""
        return self.length + self.delta


def full_layer(
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    index: Int[Array, "B T"],
    modality: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
) -> LayerCache:
    """A layer that holds every token of a chunk, in slots 0..T-1; keys and values of padding become zero."""
    # A NaN in padding would survive its attention weight of zero.
    keys, values = (jnp.where(valid[..., None, None], x, 0).swapaxes(1, 2) for x in (k, v))
    per_head = jnp.zeros_like(keys[..., 0], dtype=jnp.int32)
    ones = per_head.astype(jnp.float32) + 1
    return LayerCache(
        k=keys,
        v=values,
        index=per_head + index[:, None, :],
        modality=(per_head + modality.astype(jnp.int32)[:, None, :]).astype(jnp.int8),
        valid=(per_head == 0) & valid[:, None, :],
        multiplicity=ones,
        mass=ones - 1,
        budget=valid.sum(-1, dtype=jnp.int32),
        fill=jnp.int32(k.shape[1]),
        finite=(jnp.isfinite(keys) & jnp.isfinite(values)).all((1, 2, 3)),
    )


def reserve(layer: LayerCache, slots: int, *, spare: bool = True) -> LayerCache:
    """Adds empty slots at the end; `spare` counts them as room that pruning leaves free."""
    if slots == 0:
        return layer

    def pad(x: Array) -> Array:
        return jnp.pad(x, [(0, slots) if axis == 2 else (0, 0) for axis in range(x.ndim)])

    grown = {name: pad(getattr(layer, name)) for name in PER_SLOT}
    return dataclasses.replace(layer, **grown, room=layer.room + (slots if spare else 0))


def append(layer: LayerCache, new: LayerCache) -> LayerCache:
    """Writes a chunk at `fill`: shape-preserving, in place when donated.

    The caller sees to it that there is room; else the last slots are overwritten and `finite` is lowered.
    """
    written = {
        name: jax.lax.dynamic_update_slice_in_dim(getattr(layer, name), getattr(new, name), layer.fill, axis=2)
        for name in PER_SLOT
    }
    finite = layer.finite & new.finite & (layer.fill + new.slots <= layer.slots)
    return dataclasses.replace(layer, **written, fill=layer.fill + new.slots, finite=finite)


def with_mass(layer: LayerCache, sums: tuple[Float[Array, "M B K S"], ...]) -> LayerCache:
    """Adds the first of the column sums to the accumulated attention, if there are any."""
    return dataclasses.replace(layer, mass=layer.mass + sums[0][0]) if sums else layer


def flagged(layer: LayerCache, values: Float[Array, "B *rest"]) -> LayerCache:
    """Lowers the `finite` flag of rows with a NaN or infinity among `values`."""
    return dataclasses.replace(layer, finite=layer.finite & jnp.isfinite(values).all(tuple(range(1, values.ndim))))


def empty_like(layer: LayerCache, slots: int) -> LayerCache:
    """A layer of `slots` empty slots, all of them room."""
    empty = {name: jnp.zeros_like(getattr(layer, name)[:, :, :slots]) for name in PER_SLOT}
    return dataclasses.replace(layer, **empty, fill=jnp.int32(0), room=slots)


def join(layer: LayerCache, recent: LayerCache) -> LayerCache:
    """Writes the slots of `recent` that are filled at `fill` of `layer`, where the caller knows there is room."""
    slots = recent.slots
    start = jnp.minimum(layer.fill, layer.slots - slots)  # an update further right would be moved here anyway
    shift = layer.fill - start

    def written(old: Array, new: Array) -> Array:
        before = jax.lax.dynamic_slice_in_dim(old, start, slots, axis=2)
        # From zeros of the window's own, so that it is sharded like the window.
        place = jnp.zeros_like(before, jnp.int32) + jax.lax.broadcasted_iota(jnp.int32, before.shape, 2)
        window = jnp.where(place < shift, before, jnp.roll(new, shift, axis=2))
        return jax.lax.dynamic_update_slice_in_dim(old, window, start, axis=2)

    joined = {name: written(getattr(layer, name), getattr(recent, name)) for name in PER_SLOT}
    return dataclasses.replace(layer, **joined, fill=layer.fill + recent.fill, finite=layer.finite & recent.finite)


def take_slots(
    layer: LayerCache, slots: Int[Array, "B K C"], kept: Bool[Array, "B K C"], *, room: int = 0
) -> LayerCache:
    """Gathers slots (in the given order) into a layer of C slots plus `room` empty ones; nothing is merged."""
    taken = {name: pick(getattr(layer, name), slots) for name in PER_SLOT}
    taken["valid"] &= kept
    layer = dataclasses.replace(layer, **taken, fill=jnp.int32(slots.shape[-1]), room=0)
    return reserve(layer, room)


def compact(cache: KVCache) -> KVCache:
    """Shrinks every layer to the slots that its fullest row and head really use; all of its room is free again.

    Budgets shrink with the slots, so that a later prune between decode steps fits them.

    For use outside jit: it reads the valid counts of all layers to the host (the one host read of this library).
    """
    shrunk = []
    for layer in cache.layers:
        used = max(1, int(jax.device_get(layer.valid.sum(-1).max())))
        slots, kept, _ = chosen_slots(layer.valid, used)
        small = take_slots(layer, slots, kept, room=layer.room)
        budget = jnp.minimum(layer.budget, used)
        shrunk.append(dataclasses.replace(small, budget=budget, finite=jnp.copy(layer.finite)))
    return KVCache(tuple(shrunk), jnp.copy(cache.length), jnp.copy(cache.delta))


def check_finite(cache: KVCache) -> KVCache:
    """Reads the NaN flags to the host.

    Raises:
        ValueError: naming the rows in which a NaN or infinity was found, or a token had no room.
    """
    finite = np.all([np.asarray(layer.finite) for layer in cache.layers], axis=0)
    if not finite.all():
        raise ValueError(
            f"scores or outputs of batch rows {np.flatnonzero(~finite).tolist()} are not finite, or tokens were "
            "decoded without room; check the weights and inputs of these rows for NaN, and the room reserved."
        )
    return cache


@dataclasses.dataclass(frozen=True)
class CacheBytes:
    """Allocated bytes of a cache, over all devices, each counted once.

    Attributes:
        prompt: K and V of the slots that hold the prompt.
        room: K and V of the slots kept for decoding.
        metadata: everything else.
    """

    prompt: int
    room: int
    metadata: int


def cache_bytes(cache: KVCache) -> CacheBytes:
    """Bytes of the live buffers of `cache`."""
    prompt = room = metadata = 0
    for layer in cache.layers:
        kv = layer.k.nbytes + layer.v.nbytes
        spare = kv * layer.room // layer.slots
        prompt, room = prompt + kv - spare, room + spare
        metadata += sum(leaf.nbytes for leaf in jax.tree.leaves(layer)) - kv
    return CacheBytes(prompt, room, metadata)


def kept_counts(cache: KVCache) -> list[dict[str, float]]:
    """Valid slots per layer and modality, averaged over rows and KV heads; read on the host."""
    counts = []
    for layer in cache.layers:
        valid, ids = np.asarray(layer.valid), np.asarray(layer.modality)
        heads = valid.shape[0] * valid.shape[1]
        counts.append({m.name.lower(): float((valid & (ids == m)).sum()) / heads for m in Modality})
    return counts

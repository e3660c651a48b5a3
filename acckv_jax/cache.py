"""The KV cache: an explicit pytree that every function takes and returns.

A slot is not a position. Slots hold rotated keys in time order; `index` says which token of the uncompressed sequence a
slot holds, and the row's `length` and `delta` say which rotary position comes next, however many slots were dropped.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.modality import Modality
from acckv_jax.selection import chosen_slots, gather_slots
from acckv_jax.sharding import on_host
from acckv_jax.storage import Slots, SlotStorage, dense, encode_like, free_like, update_free


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer's slots; K heads are never repeated for grouped queries.

    A **stack** of layers of one capacity is a `LayerCache` too, each of whose arrays has the layers as one more axis in
    front: for decoders that run their layers in a scan. Functions of one layer are applied to it by `each_layer`.

    Attributes:
        k: [B, K, S, H] keys as cached (rotated), as an array or in another form of storage; read them by `keys`.
        v: [B, K, S, H] values; read them by `values`.
        index: [B, K, S] token index in the uncompressed sequence.
        modality: [B, K, S] ids of `Modality`.
        valid: [B, K, S] whether the slot holds anything.
        multiplicity: [B, K, S] number of tokens that were averaged into the slot.
        mass: [B, K, S] accumulated attention, mean over the query heads of the group.
        budget: [B] slots that the row may hold after pruning.
        next_slot: [] the slot that `append` writes next.
        finite: [B] false once a NaN or infinity was seen in the row, or a token was written without a free slot.
        recent_queries: [B, N, n, H] rotated queries of the row's last n tokens, the newest last, zeros where it has
            fewer; None unless the policy reads them.
        reserved_slots: slots at the end that are kept for new tokens (static).

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> layer = cache.layers[0]
        >>> layer.keys.shape, layer.reserved_slots, int(layer.next_slot)
        ((1, 2, 48, 16), 16, 32)
    """

    k: Slots
    v: Slots
    index: Int[Array, "B K S"]
    modality: Int[Array, "B K S"]
    valid: Bool[Array, "B K S"]
    multiplicity: Float[Array, "B K S"]
    mass: Float[Array, "B K S"]
    budget: Int[Array, " B"]
    next_slot: Int[Array, ""]
    finite: Bool[Array, " B"]
    recent_queries: Float[Array, "B N n H"] | None = None
    reserved_slots: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def slots(self) -> int:
        """S, allocated slots."""
        return self.index.shape[-1]

    @property
    def is_stack(self) -> bool:
        """Whether this is a stack of layers."""
        return self.index.ndim == 4

    @property
    def num_layers(self) -> int:
        """Layers of a stack, or 1."""
        return self.index.shape[0] if self.is_stack else 1

    @property
    def keys(self) -> Float[Array, "B K S H"]:
        """Keys in the model's type."""
        return dense(self.k)

    @property
    def values(self) -> Float[Array, "B K S H"]:
        """Values in the model's type."""
        return dense(self.v)


STORED = ("k", "v")
METADATA = ("index", "modality", "valid", "multiplicity", "mass")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """All layers, and where each row is in its uncompressed sequence.

    Attributes:
        stacks: in order, single layers and stacks of layers; their slot numbers may differ.
        length: [B] tokens seen so far, dropped ones included.
        delta: [B] rotary position of a new token minus its index (M-RoPE; 0 for plain RoPE).

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> len(cache.layers), cache.next_position.tolist()
        (2, [64])
    """

    stacks: tuple[LayerCache, ...]
    length: Int[Array, " B"]
    delta: Int[Array, " B"]

    @property
    def layers(self) -> tuple[LayerCache, ...]:
        """Every layer by itself, as slices of the stacks."""
        return tuple(layer for stack in self.stacks for layer in _layers_of(stack))

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return sum(stack.num_layers for stack in self.stacks)

    @property
    def next_position(self) -> Int[Array, " B"]:
        """[B] rotary position of the next token."""
        return self.length + self.delta


def _layers_of(stack: LayerCache) -> tuple[LayerCache, ...]:
    if not stack.is_stack:
        return (stack,)
    return tuple(jax.tree.map(operator.itemgetter(i), stack) for i in range(stack.num_layers))


def each_layer(function: Callable[..., Any], stack: LayerCache, *others: Any) -> Any:
    """`function` of a layer, or of each one of a stack in turn; `others` are divided alike."""
    if not stack.is_stack:
        return function(stack, *others)
    return jax.lax.map(lambda layer: function(*layer), (stack, *others))


def unstack(cache: KVCache) -> KVCache:
    """The same cache with every layer by itself, as decoding on CPUs wants it: in a stack each step would copy it.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder(scans=True)
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> len(cache.stacks), len(kv.unstack(cache).stacks)
        (1, 2)
    """
    return dataclasses.replace(cache, stacks=cache.layers)


def stack(cache: KVCache) -> KVCache:
    """The same cache with as few stacks as there can be: neighbours of one capacity are joined.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> len(cache.stacks), len(kv.stack(cache).stacks)
        (2, 1)
    """

    def alike(one: LayerCache) -> Any:
        leaves, structure = jax.tree.flatten(one)
        return structure, [(x.shape[one.is_stack :], x.dtype) for x in leaves]

    groups = [list(group) for _, group in itertools.groupby(cache.stacks, alike)]
    return dataclasses.replace(cache, stacks=tuple(map(_joined, groups)))


def _joined(stacks: list[LayerCache]) -> LayerCache:
    if len(stacks) == 1:
        return stacks[0]
    deep = [one if one.is_stack else jax.tree.map(lambda x: x[None], one) for one in stacks]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *deep)


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
        next_slot=jnp.int32(k.shape[1]),
        finite=(jnp.isfinite(keys) & jnp.isfinite(values)).all((1, 2, 3)),
    )


def reserve(layer: LayerCache, slots: int) -> LayerCache:
    """Adds empty slots at the end for new tokens; pruning leaves them free."""
    if slots == 0:
        return layer

    def pad(x: Array, _: int) -> Array:
        return jnp.pad(x, [(0, slots) if axis == 2 else (0, 0) for axis in range(x.ndim)])

    return dataclasses.replace(_update_free(layer, pad), reserved_slots=layer.reserved_slots + slots)


def widen(layer: LayerCache, slots: int) -> LayerCache:
    """Adds empty slots at the end that are not reserved; keys and values become plain arrays."""
    plain = dataclasses.replace(layer, k=layer.keys, v=layer.values)
    return dataclasses.replace(reserve(plain, slots), reserved_slots=layer.reserved_slots)


def store_like(layer: LayerCache, other: LayerCache) -> LayerCache:
    """Stores the keys and values of `layer`, plain arrays, in the form that `other` has."""

    def stored(name: str) -> Slots:
        return encode_like(getattr(other, name), getattr(layer, name), layer.valid, layer.reserved_slots)

    return dataclasses.replace(layer, k=stored("k"), v=stored("v"))


def _update_free(layer: LayerCache, update: Callable[..., Array], *new: LayerCache) -> LayerCache:
    """Applies `update(old, *new, offset)` to every array of slots."""
    stored = layer.slots - layer.reserved_slots
    changed: dict[str, Any] = {}
    for name in STORED:
        others = tuple(dense(getattr(x, name)) for x in new)
        changed[name] = update_free(
            getattr(layer, name), stored, lambda x, offset, others=others: update(x, *others, offset)
        )
    for name in METADATA:
        changed[name] = update(getattr(layer, name), *(getattr(x, name) for x in new), 0)
    return dataclasses.replace(layer, **changed)


def append(layer: LayerCache, new: LayerCache) -> LayerCache:
    """Writes a chunk at `next_slot`: shape-preserving, in place when donated.

    The caller makes sure that slots are free; else the last slots are overwritten and `finite` is lowered.
    """

    def write(old: Array, chunk: Array, offset: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, chunk, layer.next_slot - offset, axis=2)

    after = layer.next_slot + new.slots
    finite = layer.finite & new.finite & (after <= layer.slots)
    return dataclasses.replace(_update_free(layer, write, new), next_slot=after, finite=finite)


def with_mass(layer: LayerCache, sums: tuple[Float[Array, "B K S"], ...]) -> LayerCache:
    """Adds the first of the column sums to the accumulated attention, if there are any."""
    return dataclasses.replace(layer, mass=layer.mass + sums[0]) if sums else layer


def flagged(layer: LayerCache, values: Float[Array, "B *rest"]) -> LayerCache:
    """Lowers the `finite` flag of rows with a NaN or infinity among `values`."""
    return dataclasses.replace(layer, finite=layer.finite & jnp.isfinite(values).all(tuple(range(1, values.ndim))))


def empty_like(layer: LayerCache, slots: int) -> LayerCache:
    """A layer of `slots` empty slots, all of them reserved."""
    empty = {name: free_like(getattr(layer, name), slots) for name in STORED + METADATA}
    return dataclasses.replace(layer, **empty, next_slot=jnp.int32(0), reserved_slots=slots)


def join(layer: LayerCache, recent: LayerCache) -> LayerCache:
    """Writes the filled slots of `recent` at `next_slot` of `layer`, which has as many free slots; or of stacks."""
    axis = 2 + layer.is_stack
    next_slot = layer.next_slot.max()  # equal in all layers of a stack, which one update in place serves so

    def written(old: Array, new: Array, offset: int) -> Array:
        return _written(old, new, next_slot - offset, axis)

    joined = _update_free(layer, written, recent)
    return dataclasses.replace(
        joined,
        next_slot=layer.next_slot + recent.next_slot,
        finite=layer.finite & recent.finite,
        recent_queries=recent.recent_queries,
    )


@functools.partial(jax.jit, static_argnames="axis")  # traced once for all layers and their arrays of one shape
def _written(old: Array, new: Array, at: Int[Array, ""], axis: int) -> Array:
    """`old` with the slots of `new` from slot `at` on, as many of them as there is room for."""
    slots = new.shape[axis]
    start = jnp.minimum(at, old.shape[axis] - slots)  # further right, it would be moved here
    before = jax.lax.dynamic_slice_in_dim(old, start, slots, axis)
    # From zeros of the window's own, so that it is sharded like the window.
    place = jnp.zeros_like(before, jnp.int32) + jax.lax.broadcasted_iota(jnp.int32, before.shape, axis)
    window = jnp.where(place < at - start, before, jnp.roll(new, at - start, axis))
    return jax.lax.dynamic_update_slice_in_dim(old, window, start, axis)


def take_slots(
    layer: LayerCache, slots: Int[Array, "B K C"], kept: Bool[Array, "B K C"], *, reserved_slots: int = 0
) -> LayerCache:
    """Gathers slots (in the given order) into a layer of C slots and `reserved_slots` empty ones; nothing is merged."""
    taken: dict[str, Any] = {name: gather_slots(getattr(layer, name), slots) for name in METADATA}
    taken["valid"] &= kept
    for name in STORED:
        stored = getattr(layer, name)
        taken[name] = encode_like(stored, gather_slots(dense(stored), slots), taken["valid"], 0)
    layer = dataclasses.replace(layer, **taken, next_slot=jnp.int32(slots.shape[-1]), reserved_slots=0)
    return reserve(layer, reserved_slots)


def compact(cache: KVCache) -> KVCache:
    """Shrinks every layer to the slots that its fullest row and head really use; all reserved slots are free again.

    Budgets shrink with the slots, so that a later prune between decode steps fits them.

    For use outside jit: it reads the valid counts of all layers to the host (the one host read of this library).

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> short = kv.make_prompt(np.asarray(prompt.modality), np.array([20]))  # 20 tokens, the others are padding
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, short, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> cache.layers[0].slots, kv.compact(cache).layers[0].slots
        (48, 26)
    """
    shrunk: list[LayerCache] = []
    for layer in cache.layers:
        used = max(1, int(on_host(layer.valid.sum(-1).max())))
        slots, kept, _ = chosen_slots(layer.valid, used)
        small = take_slots(layer, slots, kept, reserved_slots=layer.reserved_slots)
        budget = jnp.minimum(layer.budget, used)
        own = jax.tree.map(jnp.copy, {"finite": layer.finite, "recent_queries": layer.recent_queries})
        shrunk.append(dataclasses.replace(small, budget=budget, **own))
    small = KVCache(tuple(shrunk), jnp.copy(cache.length), jnp.copy(cache.delta))
    return stack(small) if any(one.is_stack for one in cache.stacks) else small


def finite_rows(cache: KVCache) -> Bool[np.ndarray, " B"]:
    """[B] the NaN flags of all layers together, read on the host."""
    flags = np.concatenate([on_host(one.finite).reshape(-1, len(cache.length)) for one in cache.stacks])
    return np.logical_and.reduce(flags)


def check_finite(cache: KVCache) -> KVCache:
    """Reads the NaN flags to the host.

    Raises:
        ValueError: naming the rows in which a NaN or infinity was found, or a token had no free slot.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> kv.check_finite(cache) is cache
        True
    """
    finite = finite_rows(cache)
    if not finite.all():
        raise ValueError(
            f"scores or outputs of batch rows {np.flatnonzero(~finite).tolist()} are not finite, or tokens were "
            "decoded without a free slot; check the weights and inputs of these rows for NaN, and the reserved slots."
        )
    return cache


@dataclasses.dataclass(frozen=True)
class CacheBytes:
    """Allocated bytes of a cache, over all devices, each counted once.

    Attributes:
        prompt: K and V of the slots that hold the prompt, scales of quantised ones included.
        reserved: K and V of the slots kept for new tokens.
        metadata: everything else.

    Example:
        >>> import acckv_jax as kv
        >>> kv.CacheBytes(prompt=16384, reserved=8192, metadata=1350).prompt
        16384
    """

    prompt: int
    reserved: int
    metadata: int


def cache_bytes(cache: KVCache) -> CacheBytes:
    """Bytes of the live buffers of `cache`.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> size = kv.cache_bytes(cache)  # 2 layers, K and V, 2 heads, 32 and 16 slots, 16 numbers of 4 bytes
        >>> size.prompt, size.reserved
        (16384, 8192)
    """
    prompt = reserved = metadata = 0
    for layer in cache.stacks:
        for slots in (layer.k, layer.v):
            stored, free = _slot_bytes(slots, layer)
            prompt, reserved = prompt + stored, reserved + free
        metadata += sum(leaf.nbytes for leaf in jax.tree.leaves(dataclasses.replace(layer, k=None, v=None)))
    return CacheBytes(prompt, reserved, metadata)


def _slot_bytes(slots: Slots, layer: LayerCache) -> tuple[int, int]:
    """Bytes of the slots that hold the prompt, and of the reserved ones."""
    if isinstance(slots, SlotStorage):
        return slots.stored_bytes, slots.free.nbytes
    free = slots.nbytes * layer.reserved_slots // layer.slots
    return slots.nbytes - free, free


def kept_counts(cache: KVCache) -> list[dict[str, float]]:
    """Valid slots per layer and modality, averaged over rows and KV heads; read on the host.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> sum(kv.kept_counts(cache)[0].values())
        32.0
    """
    found = [on_host(_count(one.valid, one.modality)) for one in cache.stacks]
    layers = np.concatenate([counts.reshape(-1, len(Modality)) for counts in found])
    return [{m.name.lower(): float(n) for m, n in zip(Modality, counts, strict=True)} for counts in layers]


@jax.jit
def _count(valid: Bool[Array, "*L B K S"], modality: Int[Array, "*L B K S"]) -> Float[Array, "*L M"]:
    each = [(valid & (modality == m)).sum((-3, -2, -1), dtype=jnp.int32) for m in Modality]
    return jnp.stack(each, axis=-1).astype(jnp.float32) / (valid.shape[-3] * valid.shape[-2])

"""Prefill, pruning and decoding as pure functions over any decoder that follows `StepFn`.

    logits, cache = prefill(step, params, inputs, prompt, policy, layers=30, room=64)
    tokens, number, state = decode(step, params, start_decoding(logits, cache, key), policy, steps=64)

`prefill` compresses each layer before the next one runs. `score` and `prune` are the same in two parts, for many
budgets or many questions over one prompt. All run inside a caller's jit, scan, vmap and shard_map; host checks are
apart.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import RowWeights, attend
from acckv_jax.cache import KVCache, LayerCache, append, empty_like, full_layer, join, reserve
from acckv_jax.modality import Modality, Prompt
from acckv_jax.policy import CachePolicy, Rows
from acckv_jax.sampling import Sampler, greedy

Attend = Callable[[int, Array, Array, Array, Any], tuple[Array, LayerCache]]

UNFINISHED = 2**30
"""Stands for the length of a prompt of which more is to come."""


class StepFn(Protocol):
    """A decoder: what the library asks of a model.

    It computes q, k and v of each layer (rotated), calls `attend(layer number, q [B,T,N,H], k [B,T,K,H], v [B,T,K,H],
    cache of the layer) -> (output [B,T,N,H], next cache of the layer)` once per layer in order, and returns the logits
    of one row per sequence and the caches. It must be hashable and the same object from call to call.
    """

    def __call__(
        self,
        params: Any,
        inputs: Any,
        positions: Int[Array, "B T"] | Int[Array, "A B T"],
        layers: tuple[Any, ...],
        attend: Attend,
        rows: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], tuple[LayerCache, ...]]:
        """Runs the decoder.

        Args:
            params: the model's parameters.
            inputs: token ids [B, T], or whatever else the caller of `prefill` passed (embeddings, for instance).
            positions: rotary positions of the T tokens.
            layers: one entry per layer, to be handed to `attend`.
            attend: attention over the cache.
            rows: for each sequence, which of its T tokens the logits are wanted of.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scored:
    """A prompt (or its beginning) in full, with the column sums that policies will prune by.

    Attributes:
        cache: every token, with padding between chunks.
        sums: per policy, per layer: column sums [M, B, K, S], or None for a policy that wants none.
    """

    cache: KVCache
    sums: tuple[tuple[Float[Array, "M B K S"] | None, ...], ...]


def prefill(
    step: StepFn,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policy: CachePolicy,
    *,
    layers: int,
    room: int = 0,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Runs a prompt and prunes each layer before the next one runs; the logits are those of the uncompressed model.

    Args:
        step: the decoder.
        params: its parameters.
        inputs: the prompt as the decoder takes it, padded on the right to T tokens.
        prompt: modalities and lengths; check it first with `policy.check`.
        policy: what to keep (static).
        layers: number of layers (static).
        room: slots for tokens to come (static), see `CachePolicy.decode_room`.
        positions: rotary positions, if they are not 0..T-1.
        delta: [B] position of the first new token minus its index, if not 0.

    Returns:
        Logits [B, V] of each row's last token, and the pruned cache.
    """
    rows = _rows(prompt, jnp.zeros_like(prompt.length), prompt.length)
    weights = policy.row_weights(rows)

    def attention(index: int, q: Array, k: Array, v: Array, _: None) -> tuple[Array, LayerCache]:
        full = full_layer(k, v, rows.index, rows.modality, rows.valid)
        out, sums = attend(_clean(q, rows), full, rows.index, () if weights is None else (weights,), aligned=True)
        full = _flagged(full, sums, rows.total)
        capacity = policy.capacity(full.slots, index, layers)
        used = sums[0] if sums else None
        return out, _prune_layer(full, used, prompt.length, jnp.int32(index), policy, capacity, room)

    logits, cached = step(
        params,
        inputs,
        rows.index if positions is None else positions,
        (None,) * layers,
        attention,
        prompt.length - 1,
    )
    return logits, _owned(KVCache(cached, prompt.length, jnp.zeros_like(prompt.length) if delta is None else delta))


def score(
    step: StepFn,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policies: tuple[CachePolicy, ...],
    *,
    layers: int,
    before: Scored | None = None,
    complete: bool = True,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], Scored]:
    """Runs a chunk of a prompt after what came `before`, keeping all of it and the sums of all `policies`.

    Column sums are additive over chunks, so a prompt in chunks gives what it gives in one piece. The last
    `policy.window` rows must come in one chunk.

    Args:
        step: the decoder.
        params: its parameters.
        inputs: the chunk as the decoder takes it, padded on the right to T tokens.
        prompt: modalities and lengths of the chunk.
        policies: whose sums are wanted (static); the same for all chunks.
        layers: number of layers (static).
        before: the chunks before, if any.
        complete: whether this chunk is the last (static).
        positions: rotary positions of the chunk, if they are not those that follow `before`.
        delta: [B] position of the first new token minus its index, if not as before.

    Returns:
        Logits [B, V] of each row's last token of the chunk, and the prompt so far.
    """
    start = jnp.zeros_like(prompt.length) if before is None else before.cache.length
    shift = jnp.zeros_like(start) if before is None else before.cache.delta
    total = start + prompt.length
    rows = _rows(prompt, start, total if complete else jnp.full_like(total, UNFINISHED))
    weights = tuple(policy.row_weights(rows) for policy in policies)
    wanted = tuple(w for w in weights if w is not None)
    collected: list[tuple[Array, ...]] = []

    def attention(index: int, q: Array, k: Array, v: Array, past: LayerCache | None) -> tuple[Array, LayerCache]:
        if past is None:
            full = full_layer(k, v, rows.index, rows.modality, rows.valid)
        else:
            full = append(reserve(past, k.shape[1], spare=False), k, v, rows.index, rows.modality, rows.valid)
        out, sums = attend(_clean(q, rows), full, rows.index, wanted, aligned=past is None)
        collected.append(sums)
        return out, _flagged(full, sums, rows.total)

    past = (None,) * layers if before is None else before.cache.layers
    logits, cached = step(
        params,
        inputs,
        rows.index + shift[:, None] if positions is None else positions,
        past,
        attention,
        prompt.length - 1,
    )
    cache = _owned(KVCache(cached, total, shift if delta is None else delta))
    return logits, Scored(cache, _add_sums(weights, collected, before))


def prune(scored: Scored, number: int, policy: CachePolicy, *, room: int = 0) -> KVCache:
    """Prunes a complete prompt by policy; `scored` stays as it is, for other budgets.

    Outside jit one compiled program serves all layers of equal size.

    Args:
        scored: the prompt.
        number: which of the policies given to `score` has the sums that `policy` needs (static).
        policy: that policy, or the same with another budget or other options that its sums do not depend on (static).
        room: slots for tokens to come (static).
    """
    cache, pruned = scored.cache, []
    for index, (layer, sums) in enumerate(zip(cache.layers, scored.sums[number], strict=True)):
        capacity = policy.capacity(layer.slots, index, len(cache.layers))
        pruned.append(_prune_layer(layer, sums, cache.length, jnp.int32(index), policy, capacity, room))
    return _owned(dataclasses.replace(cache, layers=tuple(pruned)))


def _owned(cache: KVCache) -> KVCache:
    """`cache` with buffers of its own: jit hands unchanged inputs on as outputs, and donating these ends the inputs."""
    return dataclasses.replace(cache, length=jnp.copy(cache.length), delta=jnp.copy(cache.delta))


@functools.partial(jax.jit, static_argnames=("policy", "capacity", "room"))
def _prune_layer(
    layer: LayerCache,
    sums: Array | None,
    length: Int[Array, " B"],
    index: Int[Array, ""],
    policy: CachePolicy,
    capacity: int,
    room: int,
) -> LayerCache:
    if sums is None:
        sums = jnp.zeros((0, *layer.index.shape))
    pruned = reserve(policy.after_prefill(layer, sums, length, capacity, index), room)
    return jax.tree.map(jnp.copy, pruned)  # a policy that keeps all hands on its input, see `_owned`


def repeat_rows(scored: Scored, times: int) -> Scored:
    """A prompt of one row as a batch of `times` equal rows, so that as many questions can follow it at once.

    Raises:
        ValueError: if the prompt has more than one row.
    """
    rows = scored.cache.length.shape[0]
    if rows != 1:
        raise ValueError(f"only a prompt of one row can be repeated, and this one has {rows}.")

    def repeated(x: Array, axis: int) -> Array:
        return jnp.repeat(x, times, axis=axis) if x.ndim else x

    cache = jax.tree.map(lambda x: repeated(x, 0), scored.cache)
    return Scored(cache, jax.tree.map(lambda x: repeated(x, 1), scored.sums))


def extend(
    step: StepFn,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    cache: KVCache,
    policy: CachePolicy,
    *,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Appends tokens (a second question) to a cache that may have been pruned; nothing is dropped.

    The layers grow by T slots, the rows' budgets by their new tokens, and positions go on from the uncompressed length.

    Returns:
        Logits [B, V] of each row's last new token, and the cache.
    """
    rows = _rows(prompt, cache.length, cache.length + prompt.length)
    ones = (RowWeights(rows.valid.astype(jnp.float32)[None]),) if policy.tracks_mass else ()

    def attention(index: int, q: Array, k: Array, v: Array, past: LayerCache) -> tuple[Array, LayerCache]:
        layer = append(reserve(past, k.shape[1], spare=False), k, v, rows.index, rows.modality, rows.valid)
        out, sums = attend(_clean(q, rows), layer, rows.index, ones, log_multiplicity=policy.log_multiplicity)
        layer = dataclasses.replace(_with_mass(layer, sums), budget=layer.budget + prompt.length)
        return out, layer

    where = rows.index + cache.delta[:, None] if positions is None else positions
    logits, layers = step(params, inputs, where, cache.layers, attention, prompt.length - 1)
    return logits, _owned(KVCache(layers, rows.total, cache.delta))


def decode_step(
    step: StepFn,
    params: Any,
    tokens: Int[Array, " B"],
    cache: KVCache,
    policy: CachePolicy,
    active: Bool[Array, " B"],
) -> tuple[Float[Array, "B V"], KVCache]:
    """One decode step: appends one token per row, attends, and lets the policy evict; shape-preserving.

    Args:
        step: the decoder.
        params: its parameters.
        tokens: [B] the tokens to append.
        cache: the cache, with a free slot in every layer.
        policy: evicts between steps if its `every` is set (static).
        active: [B] false for rows that have ended: their token is not cached and their position stays.

    Returns:
        Logits [B, V] of the next token, and the cache.

    Raises:
        ValueError: if no room was reserved for decoding.
    """
    _check_room(cache, 1)
    logits, cache, _ = _append_token(step, params, tokens, cache, policy, active, None)
    return logits, _between_steps(cache, policy)


def _append_token(
    step: StepFn,
    params: Any,
    tokens: Int[Array, " B"],
    cache: KVCache,
    policy: CachePolicy,
    active: Bool[Array, " B"],
    before: tuple[LayerCache, ...] | None,
) -> tuple[Float[Array, "B V"], KVCache, tuple[LayerCache, ...]]:
    """`decode_step` without eviction, and over the slots of `before` too, of which only the mass changes."""
    index = cache.length[:, None]
    generated = jnp.full_like(index, Modality.GENERATED)
    counted = (RowWeights(active.astype(jnp.float32)[None, :, None]),) if policy.tracks_mass and policy.every else ()
    older: list[LayerCache] = []

    def attention(number: int, q: Array, k: Array, v: Array, past: LayerCache) -> tuple[Array, LayerCache]:
        layer = append(past, k, v, index, generated, active[:, None])
        if before is None:
            out, sums = attend(q, layer, index, counted, log_multiplicity=policy.log_multiplicity)
            return out, _with_mass(layer, sums)
        old = before[number]
        out, sums = attend(q, old, index, counted, log_multiplicity=policy.log_multiplicity, recent=layer)
        older.append(_with_mass(old, tuple(x[..., : old.slots] for x in sums)))
        return out, _with_mass(layer, tuple(x[..., old.slots :] for x in sums))

    logits, layers = step(
        params, tokens[:, None], index + cache.delta[:, None], cache.layers, attention, jnp.zeros_like(cache.length)
    )
    return logits, KVCache(layers, cache.length + active.astype(jnp.int32), cache.delta), tuple(older)


def _between_steps(cache: KVCache, policy: CachePolicy) -> KVCache:
    return dataclasses.replace(cache, layers=tuple(policy.between_steps(layer) for layer in cache.layers))


_Progress = tuple[Array, Array, "DecodeState"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Where decoding stands between two calls of `decode`.

    Attributes:
        cache: the cache; the last token is not in it yet.
        token: [B] the last token, to be appended next.
        active: [B] false for rows that have ended.
        key: random key of the sampler.
    """

    cache: KVCache
    token: Int[Array, " B"]
    active: Bool[Array, " B"]
    key: Array


def start_decoding(
    logits: Float[Array, "B V"], cache: KVCache, key: Array, *, sampler: Sampler = greedy, stop: tuple[int, ...] = ()
) -> DecodeState:
    """Chooses the first token from the prompt's logits."""
    key, draw = jax.random.split(key)
    token = sampler(logits, draw)
    return DecodeState(cache, token, ~_ended(token, stop), key)


def decode(
    step: StepFn,
    params: Any,
    state: DecodeState,
    policy: CachePolicy,
    *,
    steps: int,
    sampler: Sampler = greedy,
    stop: tuple[int, ...] = (),
) -> tuple[Int[Array, "B steps"], Int[Array, ""], DecodeState]:
    """Up to `steps` decode steps in one while loop that ends early when every row has ended, or the room is used up.

    Donate `state`: the loop then updates the cache in place. Rows that have ended repeat their last token.

    Args:
        step: the decoder.
        params: its parameters.
        state: from `start_decoding` or from the call before; its cache needs `steps` free slots unless the policy
            evicts between steps.
        policy: of the cache (static).
        steps: most tokens to make (static).
        sampler: from logits to tokens (static).
        stop: token ids that end a row (static).

    Returns:
        Tokens [B, steps], how many of the steps ran, and the next state.

    Raises:
        ValueError: if less room was reserved than the steps need.
    """
    _check_room(state.cache, 1 if policy.every else steps)
    size = min(steps, *(layer.room for layer in state.cache.layers)) if policy.every else steps

    def unfinished(carry: _Progress) -> Array:
        number, _, state = carry
        return (number < steps) & state.active.any()

    def until_full(carry: _Progress) -> _Progress:
        number, tokens, state = carry
        old = state.cache.layers
        limit = functools.reduce(jnp.minimum, [layer.slots - layer.fill for layer in old], jnp.int32(steps))
        empty = dataclasses.replace(state.cache, layers=tuple(empty_like(layer, size) for layer in old))

        def has_room(carry: tuple[_Progress, tuple[LayerCache, ...]]) -> Array:
            return unfinished(carry[0]) & (carry[0][2].cache.layers[0].fill < limit)

        def one_token(carry: tuple[_Progress, tuple[LayerCache, ...]]) -> tuple[_Progress, tuple[LayerCache, ...]]:
            (number, tokens, state), old = carry
            logits, cache, old = _append_token(step, params, state.token, state.cache, policy, state.active, old)
            key, draw = jax.random.split(state.key)
            token = jnp.where(state.active, sampler(logits, draw), state.token)
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], number, axis=1)
            active = state.active & ~_ended(token, stop)
            return (number + 1, tokens, DecodeState(cache, token, active, key)), old

        # A loop that writes into what it reads makes XLA copy it at every step. So this one reads the slots there are
        # and writes to a few of its own, which join them when it ends.
        first = number, tokens, dataclasses.replace(state, cache=empty)
        (number, tokens, state), old = jax.lax.while_loop(has_room, one_token, (first, old))
        layers = tuple(join(a, b) for a, b in zip(old, state.cache.layers, strict=True))
        cache = _between_steps(dataclasses.replace(state.cache, layers=layers), policy)
        return number, tokens, dataclasses.replace(state, cache=cache)

    tokens = jnp.zeros_like(state.token)[:, None] + jnp.zeros((1, steps), jnp.int32)
    start = jnp.int32(0), tokens, state
    number, tokens, state = jax.lax.while_loop(unfinished, until_full, start) if policy.every else until_full(start)
    return tokens, number, state


def _rows(prompt: Prompt, start: Int[Array, " B"], total: Int[Array, " B"]) -> Rows:
    index = start[:, None] + jnp.arange(prompt.modality.shape[1], dtype=jnp.int32)[None, :]
    return Rows(index, prompt.modality, prompt.valid, total)


def _check_room(cache: KVCache, steps: int) -> None:
    room = min(layer.room for layer in cache.layers)
    if room < steps:
        raise ValueError(
            f"the cache has room for {room} new tokens, fewer than the {steps} to be decoded: reserve more with "
            "room=policy.decode_room(steps) when the prompt is prefilled or pruned."
        )


def _clean(q: Float[Array, "B T N H"], rows: Rows) -> Float[Array, "B T N H"]:
    """Queries of padding become zero: a NaN there would survive its weight of zero in the column sums."""
    return jnp.where(rows.valid[..., None, None], q, 0)


def _ended(token: Int[Array, " B"], stop: tuple[int, ...]) -> Bool[Array, " B"]:
    ended = jnp.zeros_like(token, dtype=bool)
    for one in stop:
        ended = ended | (token == one)
    return ended


def _flagged(layer: LayerCache, sums: tuple[Array, ...], total: Int[Array, " B"]) -> LayerCache:
    """Lowers the `finite` flag of rows with a NaN or infinity in a score (keys and values were looked at before)."""
    finite = layer.finite
    for x in sums:
        finite = finite & jnp.isfinite(jnp.where(layer.valid[None], x, 0)).all((0, 2, 3))
    return dataclasses.replace(layer, finite=finite)


def _with_mass(layer: LayerCache, sums: tuple[Array, ...]) -> LayerCache:
    return dataclasses.replace(layer, mass=layer.mass + sums[0][0]) if sums else layer


def _add_sums(
    weights: tuple[RowWeights | None, ...], collected: list[tuple[Array, ...]], before: Scored | None
) -> tuple[tuple[Array | None, ...], ...]:
    """Sorts sums by policy and adds those of earlier chunks, whose slots come first."""
    result, position = [], 0
    for number, wanted in enumerate(weights):
        if wanted is None:
            result.append((None,) * len(collected))
            continue
        mine = [sums[position] for sums in collected]
        position += 1
        if before is not None:
            old = before.sums[number]
            mine = [
                new + jnp.pad(past, ((0, 0), (0, 0), (0, 0), (0, new.shape[-1] - past.shape[-1])))
                for new, past in zip(mine, old, strict=True)
                if past is not None
            ]
        result.append(tuple(mine))
    return tuple(result)

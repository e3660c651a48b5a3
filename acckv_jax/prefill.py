"""Reading a prompt and pruning it, as pure functions over any decoder that follows `StepFn`.

    logits, cache = prefill(step, params, inputs, prompt, policy, layers=30, room=64)

`prefill` compresses each layer before the next one runs. `score` and `prune` are the same in two parts, for many
budgets or many questions over one prompt; `extend` appends to a cache that was pruned. All run inside a caller's jit,
scan, vmap and shard_map; host checks are apart.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.attention import RowWeights, attend
from acckv_jax.cache import KVCache, LayerCache, append, flagged, full_layer, reserve, with_mass
from acckv_jax.modality import Prompt
from acckv_jax.policy import CachePolicy, Rows
from acckv_jax.step import StepFn

UNFINISHED = 2**30
"""Stands for the length of a prompt of which more is to come."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scored:
    """A prompt (or its beginning) in full, with the column sums that policies will prune by.

    Attributes:
        cache: every token, with padding between chunks.
        sums: per policy, per layer: column sums [M, B, K, S], or None for a policy that wants none.
        policies: those whose sums they are (static).
        complete: whether this is the whole prompt (static).
    """

    cache: KVCache
    sums: tuple[tuple[Float[Array, "M B K S"] | None, ...], ...]
    policies: tuple[CachePolicy, ...] = dataclasses.field(metadata={"static": True})
    complete: bool = dataclasses.field(metadata={"static": True})


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

    Raises:
        ValueError: if `room` is negative, or the decoder attends with another number of tokens than the prompt has.
    """
    _check_room(room)
    rows = _rows(prompt, jnp.zeros_like(prompt.length), prompt.length)
    weights = policy.row_weights(rows)

    def attention(index: int, q: Array, k: Array, v: Array, _: None) -> tuple[Array, LayerCache]:
        full = _chunk(k, v, rows)
        out, sums = attend(_clean(q, rows), full, rows.index, () if weights is None else (weights,), aligned=True)
        full = _flagged(full, sums, out, rows)
        capacity = policy.capacity(full.slots)
        used = sums[0] if sums else None
        pruned = _prune_layer(full, used, prompt.length, jnp.int32(index), policy, capacity, room)
        # Else XLA puts off what no later layer needs, such as all layers' NaN flags, and keeps what they are made from.
        return jax.lax.optimization_barrier((out, pruned))

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
    `policy.window` tokens of every row must come in one chunk (of ragged rows only the longest can be checked here).

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

    Raises:
        ValueError: if the chunk cannot follow `before`, is too short for a policy's window, or is not of the size that
            the decoder attends with.
    """
    if before is not None and (before.policies != policies or before.complete):
        raise ValueError(
            "a chunk must follow an incomplete prompt (complete=False) that was scored by the same policies."
        )
    short = [p for p in policies if p.window > prompt.modality.shape[1]]
    if before is not None and complete and short:
        raise ValueError(
            f"{type(short[0]).__name__} looks at the last {short[0].window} tokens, and the last chunk has only "
            f"{prompt.modality.shape[1]}: split the prompt earlier, or choose a smaller window."
        )
    start = jnp.zeros_like(prompt.length) if before is None else before.cache.length
    shift = jnp.zeros_like(start) if before is None else before.cache.delta
    total = start + prompt.length
    rows = _rows(prompt, start, total if complete else jnp.full_like(total, UNFINISHED))
    weights = tuple(policy.row_weights(rows) for policy in policies)
    wanted = tuple(w for w in weights if w is not None)
    collected: list[tuple[Array, ...]] = []

    def attention(index: int, q: Array, k: Array, v: Array, past: LayerCache | None) -> tuple[Array, LayerCache]:
        full = _chunk(k, v, rows)
        if past is not None:
            full = append(reserve(past, k.shape[1], spare=False), full)
        out, sums = attend(_clean(q, rows), full, rows.index, wanted, aligned=past is None)
        collected.append(sums)
        return out, _flagged(full, sums, out, rows)

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
    return logits, Scored(cache, _add_sums(weights, collected, before), policies, complete)


def prune(scored: Scored, number: int, policy: CachePolicy, *, room: int = 0) -> KVCache:
    """Prunes a complete prompt by policy; `scored` stays as it is, for other budgets.

    Outside jit one compiled program serves all layers of equal size.

    Args:
        scored: the prompt.
        number: which of the policies given to `score` has the sums that `policy` needs (static).
        policy: that policy, or the same with another budget or other options that its sums do not depend on (static).
        room: slots for tokens to come (static).

    Raises:
        ValueError: if the prompt is not complete, or the sums of that number are not those that `policy` needs.
    """
    _check_room(room)
    if not scored.complete:
        raise ValueError("only a complete prompt can be pruned: the last call of score needs complete=True.")
    if not 0 <= number < len(scored.policies) or not _same_sums(scored.policies[number], policy):
        names = ", ".join(f"{i}: {type(p).__name__}" for i, p in enumerate(scored.policies))
        raise ValueError(
            f"{type(policy).__name__} cannot prune by the sums of number {number}; the prompt was scored for {names}."
        )
    cache, pruned = scored.cache, []
    for index, (layer, sums) in enumerate(zip(cache.layers, scored.sums[number], strict=True)):
        capacity = policy.capacity(layer.slots)
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
        ValueError: if the prompt has more than one row, or `times` is below 1.
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}.")
    rows = scored.cache.length.shape[0]
    if rows != 1:
        raise ValueError(f"only a prompt of one row can be repeated, and this one has {rows}.")

    def repeated(x: Array, axis: int) -> Array:
        if not x.ndim:
            return jnp.copy(x)
        return jnp.concatenate([x] * times, axis=axis)

    cache = jax.tree.map(lambda x: repeated(x, 0), scored.cache)
    return dataclasses.replace(scored, cache=cache, sums=jax.tree.map(lambda x: repeated(x, 1), scored.sums))


def extend(
    step: StepFn,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    cache: KVCache,
    policy: CachePolicy,
    *,
    room: int = 0,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Appends tokens (a second question) to a cache that may have been pruned; nothing is dropped.

    The layers grow by T slots, the rows' budgets by their new tokens, and positions go on from the uncompressed length.

    Args:
        step: the decoder.
        params: its parameters.
        inputs: the new tokens as the decoder takes them, padded on the right to T tokens.
        prompt: their modalities and lengths.
        cache: the cache.
        policy: of the cache (static).
        room: further slots for tokens to come (static), beside those that are still free.
        positions: rotary positions of the new tokens, if they do not simply follow.
        delta: [B] position of the next token minus its index, if not as before.

    Returns:
        Logits [B, V] of each row's last new token, and the cache.

    Raises:
        ValueError: if `room` is negative, or the decoder attends with another number of tokens than the prompt has.
    """
    _check_room(room)
    rows = _rows(prompt, cache.length, cache.length + prompt.length)
    ones = (RowWeights(rows.valid.astype(jnp.float32)[None]),) if policy.tracks_mass else ()

    def attention(index: int, q: Array, k: Array, v: Array, past: LayerCache) -> tuple[Array, LayerCache]:
        new = _chunk(k, v, rows)
        layer = append(reserve(reserve(past, new.slots, spare=False), room), new)
        out, sums = attend(_clean(q, rows), layer, rows.index, ones, log_multiplicity=policy.log_multiplicity)
        layer = _flagged(with_mass(layer, sums), sums, out, rows)
        layer = dataclasses.replace(layer, budget=layer.budget + prompt.length)
        return out, layer

    where = rows.index + cache.delta[:, None] if positions is None else positions
    logits, layers = step(params, inputs, where, cache.layers, attention, prompt.length - 1)
    return logits, _owned(KVCache(layers, rows.total, cache.delta if delta is None else delta))


def _rows(prompt: Prompt, start: Int[Array, " B"], total: Int[Array, " B"]) -> Rows:
    index = start[:, None] + jnp.arange(prompt.modality.shape[1], dtype=jnp.int32)[None, :]
    return Rows(index, prompt.modality, prompt.valid, total)


def _check_room(room: int) -> None:
    if room < 0:
        raise ValueError(f"room is a number of slots, at least 0, not {room}.")


def _chunk(k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], rows: Rows) -> LayerCache:
    """The layer of a chunk, after checking that inputs and prompt are of one size."""
    if k.shape[:2] != rows.index.shape:
        raise ValueError(
            f"the prompt has {rows.index.shape[0]} rows of {rows.index.shape[1]} tokens, but the decoder attends with "
            f"{k.shape[0]} rows of {k.shape[1]}: pad the inputs to the prompt's size."
        )
    return full_layer(k, v, rows.index, rows.modality, rows.valid)


@functools.cache
def _same_sums(ours: CachePolicy, other: CachePolicy) -> bool:
    """Whether two policies ask for the same column sums, as tried on a row of every modality; or the other for none."""
    if ours == other:
        return True
    with jax.ensure_compile_time_eval():
        index = jnp.arange(256, dtype=jnp.int32)[None]
        rows = Rows(index, index % 3, index >= 0, jnp.array([256], jnp.int32))
        first, second = ours.row_weights(rows), other.row_weights(rows)
        if first is None or second is None:
            return second is None
        alike = first.weights.shape == second.weights.shape and first.exclude_diagonal == second.exclude_diagonal
        return alike and bool((first.weights == second.weights).all())


def _clean(q: Float[Array, "B T N H"], rows: Rows) -> Float[Array, "B T N H"]:
    """Queries of padding become zero: a NaN there would survive its weight of zero in the column sums."""
    return jnp.where(rows.valid[..., None, None], q, 0)


def _flagged(layer: LayerCache, sums: tuple[Array, ...], out: Float[Array, "B T N H"], rows: Rows) -> LayerCache:
    """`flagged` by the outputs of real rows and the scores of real slots (keys and values were looked at before)."""
    layer = flagged(layer, jnp.where(rows.valid[..., None, None], out, 0))
    for x in sums:
        layer = flagged(layer, jnp.where(layer.valid[None], x, 0).swapaxes(0, 1))
    return layer


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

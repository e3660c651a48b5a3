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
from acckv_jax.cache import KVCache, LayerCache, append, full_layer, reserve, with_mass
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
        full = _flagged(full, sums)
        capacity = policy.capacity(full.slots)
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
        full = full_layer(k, v, rows.index, rows.modality, rows.valid)
        if past is not None:
            full = append(reserve(past, k.shape[1], spare=False), full)
        out, sums = attend(_clean(q, rows), full, rows.index, wanted, aligned=past is None)
        collected.append(sums)
        return out, _flagged(full, sums)

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
        new = full_layer(k, v, rows.index, rows.modality, rows.valid)
        layer = append(reserve(past, new.slots, spare=False), new)
        out, sums = attend(_clean(q, rows), layer, rows.index, ones, log_multiplicity=policy.log_multiplicity)
        layer = dataclasses.replace(with_mass(layer, sums), budget=layer.budget + prompt.length)
        return out, layer

    where = rows.index + cache.delta[:, None] if positions is None else positions
    logits, layers = step(params, inputs, where, cache.layers, attention, prompt.length - 1)
    return logits, _owned(KVCache(layers, rows.total, cache.delta))


def _rows(prompt: Prompt, start: Int[Array, " B"], total: Int[Array, " B"]) -> Rows:
    index = start[:, None] + jnp.arange(prompt.modality.shape[1], dtype=jnp.int32)[None, :]
    return Rows(index, prompt.modality, prompt.valid, total)


def _clean(q: Float[Array, "B T N H"], rows: Rows) -> Float[Array, "B T N H"]:
    """Queries of padding become zero: a NaN there would survive its weight of zero in the column sums."""
    return jnp.where(rows.valid[..., None, None], q, 0)


def _flagged(layer: LayerCache, sums: tuple[Array, ...]) -> LayerCache:
    """Lowers the `finite` flag of rows with a NaN or infinity in a score (keys and values were looked at before)."""
    finite = layer.finite
    for x in sums:
        finite = finite & jnp.isfinite(jnp.where(layer.valid[None], x, 0)).all((0, 2, 3))
    return dataclasses.replace(layer, finite=finite)


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

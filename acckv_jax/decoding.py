"""Decoding as one loop over a cache, with pruning between steps.

tokens, number, state = decode(step, params, start_decoding(logits, cache, key), policy, steps=64)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import RowWeights, attend
from acckv_jax.cache import KVCache, LayerCache, append, empty_like, flagged, full_layer, join, with_mass
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy
from acckv_jax.sampling import Sampler, greedy
from acckv_jax.step import StepFn


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
    _check_free_slots(cache, 1)
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
        q = jnp.where(active[:, None, None, None], q, 0)  # NaN of an ended row would stay in its mass
        layer = append(past, full_layer(k, v, index, generated, active[:, None]))
        if before is None:
            out, sums = attend(q, layer, index, counted, log_multiplicity=policy.log_multiplicity)
            return out, with_mass(flagged(layer, out), sums)
        old = before[number]
        out, sums = attend(q, old, index, counted, log_multiplicity=policy.log_multiplicity, recent=layer)
        older.append(with_mass(old, tuple(x[..., : old.slots] for x in sums)))
        return out, with_mass(flagged(layer, out), tuple(x[..., old.slots :] for x in sums))

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
        Tokens [B, steps], how many of the steps ran (fewer than asked for also if earlier calls have used up the room
        and the policy does not evict: see `extend`), and the next state. In a shard_map over rows each shard stops for
        itself, so that the number and `fill` belong to the shard.

    Raises:
        ValueError: if less room was reserved than the steps need, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    _check_free_slots(state.cache, 1 if policy.every else steps)
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


def _check_free_slots(cache: KVCache, steps: int) -> None:
    """Checks the reserved room, and what is free of it where that is known on the host (outside jit)."""
    fill = cache.layers[0].fill
    known = not isinstance(fill, Tracer)
    room = min((layer.slots - int(layer.fill) if known else layer.room) for layer in cache.layers)
    if room < steps:
        raise ValueError(
            f"the cache has room for {room} new tokens, fewer than the {steps} to be decoded: reserve more with "
            "room=policy.decode_room(steps) when the prompt is prefilled, pruned or extended."
        )


def _ended(token: Int[Array, " B"], stop: tuple[int, ...]) -> Bool[Array, " B"]:
    ended = jnp.zeros_like(token, dtype=bool)
    for one in stop:
        ended = ended | (token == one)
    return ended

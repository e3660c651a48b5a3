"""Decoding as one loop over a cache, with pruning between steps.

tokens, number, state = decode(decoder, params, start_decoding(logits, cache, key), policy, steps=64)
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import QueryWeights, attend
from acckv_jax.cache import (
    KVCache,
    LayerCache,
    append,
    each_layer,
    empty_like,
    flagged,
    full_layer,
    join,
    unstack,
    with_mass,
)
from acckv_jax.decoder import Decoder, check_decoder
from acckv_jax.modality import Modality
from acckv_jax.policy import CachePolicy, between_steps
from acckv_jax.recent import recent_count, with_recent_queries
from acckv_jax.sampling import Sampler, greedy
from acckv_jax.stacks import numbered, stacks_of
from acckv_jax.storage import after


def decode_step(
    decoder: Decoder,
    params: Any,
    tokens: Int[Array, " B"],
    cache: KVCache,
    policy: CachePolicy,
    active: Bool[Array, " B"],
) -> tuple[Float[Array, "B V"], KVCache]:
    """One decode step: appends one token per row, attends, and lets the policy evict; shape-preserving.

    Args:
        decoder: the decoder (static).
        params: its parameters.
        tokens: [B] the tokens to append.
        cache: the cache, with a free slot in every layer.
        policy: evicts between steps if its `evict_every` is set (static).
        active: [B] false for rows that have ended: their token is not cached and their position stays.

    Returns:
        Logits [B, V] of the next token, and the cache.

    Raises:
        ValueError: if no slot was reserved for decoding.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> policy = kv.Knorm(budget=0.5)
        >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, policy, reserved_slots=16)
        >>> token, active = jnp.array([7]), jnp.array([True])
        >>> logits, cache = kv.jitted.decode_step(decoder, params, token, cache, policy, active)
        >>> cache.length.tolist()
        [65]
    """
    check_decoder(decoder)
    _check_free_slots(cache, 1)
    cache = cache if decoder.scans else unstack(cache)
    logits, cache, _ = _append_token(decoder, params, tokens, cache, policy, active, ())
    return logits, _evict(cache, policy)


def _append_token(
    decoder: Decoder,
    params: Any,
    tokens: Int[Array, " B"],
    cache: KVCache,
    policy: CachePolicy,
    active: Bool[Array, " B"],
    before: tuple[LayerCache, ...],
) -> tuple[Float[Array, "B V"], KVCache, tuple[LayerCache, ...]]:
    """`decode_step` without eviction, and over the slots of `before` too, of which only the mass changes."""
    index = cache.length[:, None]
    generated = jnp.full_like(index, Modality.GENERATED)
    counts = policy.mass_queries is not None and policy.evict_every > 0
    counted = (QueryWeights(active.astype(jnp.float32)[:, None]),) if counts else ()

    def attention(
        _: int | Array, q: Array, k: Array, v: Array, past: tuple[LayerCache, ...], carry: Any, **given: Array
    ) -> tuple[Array, tuple[LayerCache, tuple[Array, ...]], Any]:
        q = jnp.where(active[:, None, None, None], q, 0)  # NaN of an ended row would stay in its mass
        own, *older = past
        layer = append(own, full_layer(k, v, index, generated, active[:, None]))
        layer = with_recent_queries(layer, q, active.astype(jnp.int32), recent_count(layer))
        read = (dataclasses.replace(x, k=after(x.k, q), v=after(x.v, q)) for x in older)
        out, sums = attend(q, (*read, layer), index, counted, log_multiplicity=policy.log_multiplicity)
        layers = (*older, layer)
        edges = list(itertools.accumulate(x.slots for x in layers))[:-1]
        shares = zip(*(jnp.split(x, edges, axis=-1) for x in sums), strict=True) if sums else ((),) * len(layers)
        *older, layer = (with_mass(x, share) for x, share in zip(layers, shares, strict=True))
        # Of the older slots only what changes goes through a scan over layers: it would copy the rest.
        return out, (flagged(layer, out), tuple(x.mass for x in older) if counts else ()), carry

    stacks = stacks_of(cache.stacks, *((before,) if before else ()))
    logits, after_each, _ = decoder.run(
        params, tokens[:, None], index + cache.delta[:, None], stacks, (), attention, jnp.zeros_like(cache.length)
    )
    layers, masses = zip(*after_each, strict=True)
    if counts:
        before = tuple(dataclasses.replace(x, mass=mass) for x, (mass,) in zip(before, masses, strict=bool(before)))
    return logits, KVCache(layers, cache.length + active.astype(jnp.int32), cache.delta), before


def _evict(cache: KVCache, policy: CachePolicy) -> KVCache:
    """Lets the policy evict in every layer that is full."""
    if not policy.evict_every:
        return cache

    def evict(layer: LayerCache, number: int | Array) -> LayerCache:
        return between_steps(policy, layer, cache, number, cache.num_layers)

    alike = jax.jit(evict)  # traced once for all layers of one size
    after_each = (each_layer(alike, layer, number) for layer, number in numbered(cache))
    return dataclasses.replace(cache, stacks=tuple(after_each))


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

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> state = kv.start_decoding(logits, cache, jax.random.key(0))
        >>> state.token.shape, state.active.tolist()
        ((1,), [True])
    """

    cache: KVCache
    token: Int[Array, " B"]
    active: Bool[Array, " B"]
    key: Array


def start_decoding(
    logits: Float[Array, "B V"],
    cache: KVCache,
    key: Array,
    *,
    sampler: Sampler = greedy,
    stop_token_ids: tuple[int, ...] = (),
) -> DecodeState:
    """Chooses the first token from the prompt's logits.

    Args:
        logits: [B, V] of each row's last token.
        cache: the prompt's, for `decode`.
        key: random key of the sampler.
        sampler: from logits to tokens.
        stop_token_ids: ids that end a row.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> state = kv.start_decoding(logits, cache, jax.random.key(0), sampler=kv.Sample(temperature=0.7))
        >>> state.active.tolist()
        [True]
    """
    key, draw = jax.random.split(key)
    token = sampler(logits, draw)
    if token.shape != logits.shape[:1]:
        raise ValueError(
            f"the sampler returned tokens of shape {token.shape}, not one for each row, {logits.shape[:1]}."
        )
    return DecodeState(cache, token, ~_ended(token, stop_token_ids), key)


def decode(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    policy: CachePolicy,
    *,
    steps: int,
    limit: Int[Array, ""] | None = None,
    sampler: Sampler = greedy,
    stop_token_ids: tuple[int, ...] = (),
) -> tuple[Int[Array, "B steps"], Int[Array, ""], DecodeState]:
    """Up to `steps` decode steps in one while loop that ends early when every row has ended, or no slot is free.

    Donate `state`: the loop then updates the cache in place. Rows that have ended repeat their last token.

    Args:
        decoder: the decoder (static).
        params: its parameters.
        state: from `start_decoding` or from the call before; its cache needs `steps` free slots unless the policy
            evicts between steps.
        policy: of the cache (static).
        steps: most tokens to make (static).
        limit: fewer than `steps`, if that is known at run time only.
        sampler: from logits to tokens (static).
        stop_token_ids: ids that end a row.

    Returns:
        Tokens [B, steps], how many of the steps ran (fewer than asked for if earlier calls have filled the slots and
        the policy does not evict: see `extend`), and the next state. In a shard_map over rows each shard stops for
        itself, so that the number and `next_slot` belong to the shard.

    Raises:
        ValueError: if fewer slots were reserved than the steps need, or `steps` is below 1.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> policy = kv.Knorm(budget=0.5)
        >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, policy, reserved_slots=16)
        >>> state = kv.start_decoding(logits, cache, jax.random.key(0))
        >>> write = jax.jit(kv.decode, static_argnames=("decoder", "policy", "steps"), donate_argnames="state")
        >>> tokens, number, state = write(decoder, params, state, policy, steps=4)
        >>> tokens.shape, int(number)
        ((1, 4), 4)
    """
    check_decoder(decoder)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}.")
    _check_free_slots(state.cache, 1 if policy.evict_every else steps)
    size = min(steps, *(layer.reserved_slots for layer in state.cache.stacks)) if policy.evict_every else steps
    state = state if decoder.scans else dataclasses.replace(state, cache=unstack(state.cache))

    most = jnp.int32(steps) if limit is None else jnp.minimum(limit, steps)

    def unfinished(carry: _Progress) -> Array:
        number, _, state = carry
        return (number < most) & state.active.any()

    def until_full(carry: _Progress) -> _Progress:
        number, tokens, state = carry
        old = state.cache.stacks
        limit = functools.reduce(jnp.minimum, [(x.slots - x.next_slot).min() for x in old], jnp.int32(steps))
        empty = tuple(each_layer(lambda layer: empty_like(layer, size), x) for x in old)

        def has_room(carry: tuple[_Progress, tuple[LayerCache, ...]]) -> Array:
            return unfinished(carry[0]) & (carry[0][2].cache.stacks[0].next_slot.max() < limit)

        def one_token(carry: tuple[_Progress, tuple[LayerCache, ...]]) -> tuple[_Progress, tuple[LayerCache, ...]]:
            (number, tokens, state), old = carry
            logits, cache, old = _append_token(decoder, params, state.token, state.cache, policy, state.active, old)
            key, draw = jax.random.split(state.key)
            token = jnp.where(state.active, sampler(logits, draw), state.token)
            tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], number, axis=1)
            active = state.active & ~_ended(token, stop_token_ids)
            return (number + 1, tokens, DecodeState(cache, token, active, key)), old

        # A loop that writes into what it reads makes XLA copy it at every step. So this one reads the slots there are
        # and writes to a few of its own, which join them when it ends.
        first = number, tokens, dataclasses.replace(state, cache=dataclasses.replace(state.cache, stacks=empty))
        (number, tokens, state), old = jax.lax.while_loop(has_room, one_token, (first, old))
        layers = tuple(join(a, b) for a, b in zip(old, state.cache.stacks, strict=True))
        cache = _evict(dataclasses.replace(state.cache, stacks=layers), policy)
        return number, tokens, dataclasses.replace(state, cache=cache)

    tokens = jnp.zeros_like(state.token)[:, None] + jnp.zeros((1, steps), jnp.int32)
    start = jnp.int32(0), tokens, state
    number, tokens, state = (
        jax.lax.while_loop(unfinished, until_full, start) if policy.evict_every else until_full(start)
    )
    return tokens, number, state


def _check_free_slots(cache: KVCache, steps: int) -> None:
    """Checks the reserved slots; outside jit, those of them that are still free."""
    known = not isinstance(cache.stacks[0].next_slot, Tracer)
    room = min((x.slots - int(x.next_slot.max()) if known else x.reserved_slots) for x in cache.stacks)
    if room < steps:
        raise ValueError(
            f"the cache has room for {room} new tokens, fewer than the {steps} to be decoded: reserve more with "
            "reserved_slots=policy.reserved_slots(steps) when the prompt is prefilled, pruned or extended."
        )


def _ended(token: Int[Array, " B"], stop_token_ids: tuple[int, ...]) -> Bool[Array, " B"]:
    ended = jnp.zeros_like(token, dtype=bool)
    for one in stop_token_ids:
        ended = ended | (token == one)
    return ended

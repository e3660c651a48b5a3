"""Prompt in, tokens out: the library in one call."""

import dataclasses
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax import jitted
from acckv_jax.budget import count_tokens
from acckv_jax.cache import CacheBytes, KVCache, LayerCache, cache_bytes, check_finite, kept_counts
from acckv_jax.decoder import Decoder, check_decoder
from acckv_jax.decoding import DecodeState, decode_step, start_decoding
from acckv_jax.modality import Prompt, bucket_length
from acckv_jax.policy import CachePolicy, check_policy
from acckv_jax.prefill import check_positions
from acckv_jax.sampling import Sampler, greedy, random_key
from acckv_jax.sharding import on_host

CHUNK = 16
"""Decode steps between two looks at what was generated; one program serves any number of new tokens."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """Generated tokens, and where the conversation stands.

    Attributes:
        tokens: [B, N] new tokens; rows that have ended repeat their last token.
        num_tokens: [B] how many of them belong to the row, the stop token included.
        cache_bytes: of the pruned cache, before decoding.
        kept: per layer, slots of the pruned cache by modality, averaged over rows and KV heads.
        state: where decoding stands; the next call takes it from `after`.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> found = kv.generate(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), max_new_tokens=4)
        >>> found.num_tokens.tolist(), found.cache_bytes.prompt
        ([4], 16384)
    """

    tokens: Int[np.ndarray, "B N"]
    num_tokens: Int[np.ndarray, " B"]
    cache_bytes: CacheBytes
    kept: list[dict[str, float]]
    state: DecodeState = dataclasses.field(repr=False)


def generate(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policy: CachePolicy,
    *,
    max_new_tokens: int = 64,
    sampler: Sampler = greedy,
    seed: int = 0,
    stop_token_ids: tuple[int, ...] = (),
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
    after: Generation | None = None,
) -> Generation:
    """Reads a prompt, prunes its cache by a policy, and decodes; everything is compiled on the first call.

    The prompt is padded to one of few lengths (`bucket_length`), so that few programs are compiled.

    Args:
        decoder: the decoder.
        params: its parameters.
        inputs: the prompt as the decoder takes it, a pytree of arrays [B, T, ...]: token ids, or embeddings.
        prompt: modalities and lengths.
        policy: what to keep.
        max_new_tokens: most tokens to generate.
        sampler: from logits to tokens.
        seed: of the sampler.
        stop_token_ids: ids that end a row.
        positions: rotary positions, if they are not 0..T-1.
        delta: [B] position of the first new token minus its index, if not 0.
        after: the answer that this prompt follows. The prompt is then appended to its pruned cache, after the last
            token generated, and nothing more is dropped. Several prompts may follow one answer.

    Raises:
        ValueError: if the budget is too small for the prompt, values are not finite, or a number is out of range.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> first = kv.generate(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), max_new_tokens=4)
        >>> first.tokens.shape, first.cache_bytes.prompt
        ((1, 4), 16384)
        >>> question = kv.make_prompt(np.zeros((1, 8), int))
        >>> second = kv.generate(
        ...     decoder, params, inputs[:, :8], question, kv.Knorm(budget=0.5), max_new_tokens=4, after=first
        ... )
        >>> second.state.cache.length.tolist()  # 64 + 4 + 8 + 3: the last token is not in the cache yet
        [79]
    """
    check_decoder(decoder)
    check_policy(policy)
    key, stop_token_ids = random_key(seed), _token_ids(stop_token_ids)
    logits, cache = read(
        decoder, params, inputs, prompt, policy, max_new_tokens, positions=positions, delta=delta, after=after
    )
    check_finite(cache)
    size, kept = cache_bytes(cache), kept_counts(cache)
    state = start_decoding(logits, for_decoding(decoder, cache), key, sampler=sampler, stop_token_ids=stop_token_ids)
    more = {"sampler": sampler, "stop_token_ids": stop_token_ids}
    pieces = list(write(decoder, params, state, policy, max_new_tokens, **more))
    tokens, counts, states = zip(*pieces, strict=True)
    check_finite(states[-1].cache)
    return Generation(np.concatenate(tokens, axis=1), np.sum(counts, axis=0), size, kept, states[-1])


def read(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policy: CachePolicy,
    max_new_tokens: int,
    *,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
    after: Generation | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """The first half of `generate`: logits of the prompt's last token, and the pruned cache with slots to decode into.

    Raises:
        ValueError: as `generate`.
    """
    if not isinstance(prompt, Prompt):
        raise ValueError(f"a prompt is made by make_prompt(modality, length), and not a {type(prompt).__name__}.")
    if after is not None and not isinstance(after, Generation):
        raise ValueError(f"after is what an earlier generate returned, and not a {type(after).__name__}.")
    check_positions(positions, prompt, delta)
    wrong = [np.shape(x) for x in jax.tree.leaves(inputs) if np.shape(x)[:2] != prompt.modality.shape]
    if wrong:
        raise ValueError(
            f"inputs are arrays [B, T, ...] for a prompt of [B, T] = {list(prompt.modality.shape)} tokens, not of "
            f"shape {list(wrong[0])}."
        )
    inputs, prompt, positions = _in_bucket(inputs, prompt, positions)
    more = {"reserved_slots": reserved_slots(policy, max_new_tokens), "positions": positions, "delta": delta}
    if after is None:
        policy.check(count_tokens(prompt))
        return jitted.prefill(decoder, params, inputs, prompt, policy, **more)
    state, active = after.state, jnp.ones_like(after.state.active)
    _, cache = _append(decoder, params, state.token, state.cache, policy.while_decoding(), active)
    return jitted.extend(decoder, params, inputs, prompt, cache, policy, **more)


def for_decoding(decoder: Decoder, cache: KVCache) -> KVCache:
    """The cache as decoding is fastest: on CPUs with every layer by itself, else each step would copy all of them."""
    on_cpu = all(device.platform == "cpu" for device in cache.length.devices())
    if not (decoder.scans and on_cpu):
        return cache
    single: list[LayerCache] = []
    for stack in cache.stacks:
        if not stack.is_stack:
            single.append(stack)
            continue
        # A small program for each shape of an array compiles faster than one for the whole cache.
        single += [jax.tree.map(lambda x, i=i: _layer(x, i), stack) for i in range(stack.num_layers)]
    return dataclasses.replace(cache, stacks=tuple(single))


@jax.jit
def _layer(stacked: Array, number: int) -> Array:
    return jax.lax.dynamic_index_in_dim(stacked, number, keepdims=False)


def write(
    decoder: Decoder,
    params: Any,
    state: DecodeState,
    policy: CachePolicy,
    max_new_tokens: int,
    *,
    sampler: Sampler = greedy,
    stop_token_ids: tuple[int, ...] = (),
) -> Iterator[tuple[Int[np.ndarray, "B n"], Int[np.ndarray, " B"], DecodeState]]:
    """The second half of `generate`, as a stream.

    Yields:
        New tokens [B, n], of which the first comes from `state` itself; how many of them belong to each row [B]; and
        the state after them, which the next step uses up.
    """
    active = on_host(state.active)
    first = on_host(state.token)[:, None]
    yield first, np.ones(len(first), int), state
    left = max_new_tokens - 1
    while left > 0 and active.any():
        lengths = on_host(state.cache.length)
        tokens, number, state = jitted.decode(
            decoder,
            params,
            state,
            policy.while_decoding(),
            steps=CHUNK,
            limit=jnp.int32(min(left, CHUNK)),
            sampler=sampler,
            stop_token_ids=stop_token_ids,
        )
        number = int(number)
        active = on_host(state.active)
        left -= number
        yield on_host(tokens)[:, :number], on_host(state.cache.length) - lengths, state


def reserved_slots(policy: CachePolicy, max_new_tokens: int) -> int:
    """Slots to reserve for so many tokens, decoded in chunks.

    Raises:
        ValueError: if `max_new_tokens` is below 1.
    """
    if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1 token, not {max_new_tokens!r}.")
    return policy.reserved_slots(-(-max_new_tokens // CHUNK) * CHUNK)


_append = jax.jit(decode_step, static_argnames=("decoder", "policy"))
"""Unlike `jitted.decode_step` it leaves the cache to other prompts that may follow the same answer."""


def _token_ids(ids: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(one) for one in ids)
    except TypeError:
        raise ValueError(f"stop_token_ids are several token ids, such as (2,), not {ids!r}.") from None


def _in_bucket(inputs: Any, prompt: Prompt, positions: Array | None) -> tuple[Any, Prompt, Array | None]:
    """Inputs, prompt and positions, padded to the bucket of their length."""
    tokens = prompt.modality.shape[1]
    extra = bucket_length(tokens) - tokens
    if not extra:
        return inputs, prompt, positions

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)])

    positions = None if positions is None else pad(positions, positions.ndim - 1)
    prompt = dataclasses.replace(prompt, modality=pad(prompt.modality, 1))
    return jax.tree.map(lambda x: pad(jnp.asarray(x), 1), inputs), prompt, positions

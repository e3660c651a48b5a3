"""Logits of a prompt and of given tokens after it, as one program: prefill, then one cached step a token."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import acckv_jax as kv

FULL = kv.make_policy("full")


@functools.partial(jax.jit, static_argnames=("decoder", "policy"))
def logits_through_cache(
    params: Any,
    arguments: dict[str, Any],
    tokens: jax.Array,
    *,
    decoder: kv.Decoder,
    policy: kv.CachePolicy = FULL,
) -> jax.Array:
    """Logits [T + 1, B, V] of the prompts' last tokens and of the tokens after them.

    Args:
        params: the decoder's.
        arguments: `inputs`, `prompt` and so on, as `acckv_jax.prefill` takes them.
        tokens: [B, T] what follows the prompts, whatever the logits say.
        decoder: the decoder.
        policy: of the cache.
    """
    steps = tokens.shape[1]
    reserved = policy.reserved_slots(steps)
    logits, cache = kv.prefill(decoder, params, **arguments, policy=policy, reserved_slots=reserved)
    if not steps:
        return logits[None]

    def one(cache: kv.KVCache, token: jax.Array) -> tuple[kv.KVCache, jax.Array]:
        logits, cache = kv.decode_step(decoder, params, token, cache, policy, token >= 0)
        return cache, logits

    _, after = jax.lax.scan(one, cache, tokens.T)
    return jnp.concatenate([logits[None], after])

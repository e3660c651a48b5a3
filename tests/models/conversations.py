"""A conversation on any model's decoder: a prompt, an answer, a second question after pruning, a second answer."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

import acckv_jax as kv
from models.batching import Batch
from tests.acckv_jax.contract_cases import CONTRACT

STEPS = 8
FULL = kv.make_policy("full")
EQUAL_LAYERS = [name for name in CONTRACT if not name.startswith("per_layer")]
"""Policies for decoders of any number of layers."""
MOVED = ("streaming_llm", "h2o_prefill_only", "random", "snapkv", "acckv_evict_only")
"""Policies of the contract that only move slots; with evict_every=0 they do not evict between steps."""


@functools.partial(jax.jit, static_argnames=("decoder", "policy"))
def read(params: Any, batch: Batch, *, decoder: kv.Decoder, policy: kv.CachePolicy) -> Any:
    """Logits and cache of a prompt."""
    reserved = policy.reserved_slots(STEPS)
    return kv.prefill(decoder, params, **batch.arguments(), policy=policy, reserved_slots=reserved)


@functools.partial(jax.jit, static_argnames=("decoder", "policy"))
def talk(
    params: Any, logits: Any, pruned: kv.KVCache, second: Batch, *, decoder: kv.Decoder, policy: kv.CachePolicy
) -> Any:
    """After a prompt: STEPS greedy tokens, a second question, and STEPS more."""

    def one(carry: Any, _: None) -> Any:
        logits, cache = carry
        token = logits.argmax(-1)
        logits, cache = kv.decode_step(decoder, params, token, cache, policy, token >= 0)
        return (logits, cache), (token, logits)

    (_, answered), first = jax.lax.scan(one, (logits, pruned), length=STEPS)
    inputs, prompt = second.inputs, second.prompt
    logits, asked = kv.extend(
        decoder, params, inputs, prompt, answered, policy, reserved_slots=policy.reserved_slots(STEPS)
    )
    (_, ended), later = jax.lax.scan(one, (logits, asked), length=STEPS)
    return {"answered": answered, "asked": asked, "ended": ended, "first": first, "later": later}


def converse(params: Any, batch: Batch, second: Batch, *, decoder: kv.Decoder, policy: kv.CachePolicy) -> Any:
    """The whole conversation: the cache after each stage, and the tokens and logits of both answers."""
    logits, pruned = read(params, batch, decoder=decoder, policy=policy)
    return talk(params, logits, pruned, second, decoder=decoder, policy=policy) | {"pruned": pruned}


def masked_alike(whole: kv.KVCache, pruned: kv.KVCache) -> kv.KVCache:
    """A whole cache with those slots masked that pruning dropped."""
    layers = []
    for full, kept in zip(whole.layers, pruned.layers, strict=True):
        valid = np.zeros(full.valid.shape, bool)
        rows, heads, slots = np.nonzero(np.asarray(kept.valid))
        valid[rows, heads, np.asarray(kept.index)[rows, heads, slots]] = True
        assert valid.sum() < np.asarray(full.valid).sum()
        layers.append(dataclasses.replace(full, valid=full.valid & valid))
    return dataclasses.replace(whole, stacks=tuple(layers))

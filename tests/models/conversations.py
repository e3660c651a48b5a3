"""A conversation on any model's decoder: a prompt, an answer, a second question after pruning, a second answer."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

import acckv_jax as kv
from models.batching import Batch

STEPS = 8
FULL = kv.make_policy("full")
MOVED = ("streaming_llm", "h2o_prefill_only", "random", "snapkv", "acckv_evict_only")
"""Policies of the contract that move slots and change nothing in them; with every=0 they do not evict between steps."""


@functools.partial(jax.jit, static_argnames=("step", "policy", "layers"))
def read(params: Any, batch: Batch, *, step: kv.StepFn, policy: kv.CachePolicy, layers: int) -> Any:
    """Logits and cache of a prompt."""
    room = policy.decode_room(STEPS)
    return kv.prefill(step, params, **batch.arguments(), policy=policy, layers=layers, room=room)


@functools.partial(jax.jit, static_argnames=("step", "policy"))
def talk(
    params: Any, logits: Any, pruned: kv.KVCache, second: Batch, *, step: kv.StepFn, policy: kv.CachePolicy
) -> Any:
    """After a prompt: STEPS greedy tokens, a second question, and STEPS more."""

    def one(carry: Any, _: None) -> Any:
        logits, cache = carry
        token = logits.argmax(-1)
        logits, cache = kv.decode_step(step, params, token, cache, policy, token >= 0)
        return (logits, cache), (token, logits)

    (_, answered), first = jax.lax.scan(one, (logits, pruned), length=STEPS)
    inputs, prompt = second.inputs, second.prompt
    logits, asked = kv.extend(step, params, inputs, prompt, answered, policy, room=policy.decode_room(STEPS))
    (_, ended), later = jax.lax.scan(one, (logits, asked), length=STEPS)
    return {"answered": answered, "asked": asked, "ended": ended, "first": first, "later": later}


def converse(params: Any, batch: Batch, second: Batch, *, step: kv.StepFn, policy: kv.CachePolicy, layers: int) -> Any:
    """The whole conversation: the cache after each stage, and the tokens and logits of both answers."""
    logits, pruned = read(params, batch, step=step, policy=policy, layers=layers)
    return talk(params, logits, pruned, second, step=step, policy=policy) | {"pruned": pruned}


def masked_alike(whole: kv.KVCache, pruned: kv.KVCache) -> kv.KVCache:
    """A whole cache with those slots masked that pruning dropped."""
    layers = []
    for full, kept in zip(whole.layers, pruned.layers, strict=True):
        valid = np.zeros(full.valid.shape, bool)
        rows, heads, slots = np.nonzero(np.asarray(kept.valid))
        valid[rows, heads, np.asarray(kept.index)[rows, heads, slots]] = True
        assert valid.sum() < np.asarray(full.valid).sum()
        layers.append(dataclasses.replace(full, valid=full.valid & valid))
    return dataclasses.replace(whole, layers=tuple(layers))

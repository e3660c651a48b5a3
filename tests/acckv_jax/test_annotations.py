"""What the annotations of public functions and of policies say, shapes included, holds when they run."""

import inspect
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

import acckv_jax as kv
from acckv_jax.testing import tiny_decoder

checked = jaxtyped(typechecker=beartype)
DECODER, PARAMS, INPUTS, PROMPT = tiny_decoder()
POLICIES = [
    kv.AccKV.plus(budget=0.5),
    kv.SnapKV(budget=0.5, window_size=8),
    kv.StreamingLLM(budget=0.5),
    kv.Random(budget=0.5),
    kv.Quantized(kv.Protected(kv.H2O(budget=0.5, evict_every=4))),
    kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0, 0.5)),
    kv.CriticalKV(kv.AdaKV(kv.H2O(budget=0.5, evict_every=4))),
    kv.Quantized(kv.Smoothed(kv.CLIE(kv.SnapKV(budget=0.5, window_size=8), scored_layers=1)), bits=4),
]


@pytest.fixture
def library(monkeypatch):
    """The library's public functions, and the methods of all policies, with their annotations checked."""
    kinds = {kind for policy in POLICIES for kind in type(policy).__mro__ if issubclass(kind, kv.CachePolicy)}
    for kind in {*kinds, kv.Knorm, kv.H2O, kv.Protected}:
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and not name.startswith("_") and Self not in method.__annotations__.values():
                monkeypatch.setattr(kind, name, checked(method))
    jax.clear_caches()  # else programs traced before would not run the methods
    yield {name: checked(getattr(kv, name)) for name in kv.__all__ if inspect.isfunction(getattr(kv, name))}
    jax.clear_caches()


@pytest.mark.complete
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_conversation(library, policy, tmp_path):
    prompt = library["make_prompt"](np.asarray(PROMPT.modality), np.asarray(PROMPT.length))
    policy.check(library["count_tokens"](prompt))
    _, scored = library["score"](DECODER, PARAMS, INPUTS, prompt, (policy,))
    library["prune"](scored, policy, reserved_slots=4)
    logits, cache = library["prefill"](DECODER, PARAMS, INPUTS, prompt, policy, reserved_slots=4)
    logits, cache = library["decode_step"](DECODER, PARAMS, jnp.array([7]), cache, policy, jnp.ones(1, bool))
    question = library["make_prompt"](np.zeros((1, 8), int))
    logits, cache = library["extend"](DECODER, PARAMS, INPUTS[:, :8], question, cache, policy, reserved_slots=4)
    state = library["start_decoding"](logits, cache, jax.random.key(0), sampler=kv.Sample(temperature=0.5))
    _, _, state = library["decode"](DECODER, PARAMS, state, policy, steps=4)
    library["check_finite"](state.cache)
    assert library["cache_bytes"](library["compact"](state.cache)).prompt > 0
    assert len(library["kept_counts"](state.cache)) == 2
    found = library["generate"](DECODER, PARAMS, INPUTS, prompt, policy, max_new_tokens=4)
    library["save_cache"](tmp_path / "clip", found, model="tiny")
    found = library["load_cache"](tmp_path / "clip", model=kv.ModelIdentity("tiny", 2, 2, 16))
    again = library["generate"](DECODER, PARAMS, INPUTS[:, :8], question, policy, max_new_tokens=4, after=found)
    assert again.tokens.shape == (1, 4)


@pytest.mark.complete
def test_other_shapes_are_found(library):
    with pytest.raises(TypeCheckError, match="start_decoding"):
        library["start_decoding"](jnp.zeros(3), kv.KVCache((), PROMPT.length, PROMPT.length), jax.random.key(0))

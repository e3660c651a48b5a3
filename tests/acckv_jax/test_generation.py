"""Prompts in chunks, many budgets from one prefill, the decode loop and sampling."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.contract_cases import (
    CONTRACT,
    DECODER,
    LENGTHS,
    MODEL,
    episode,
    params_of,
    random_inputs,
    run_episode,
    scored_by,
)
from tests.acckv_jax.test_contract import assert_same_cache
from tests.tiers import quick_first, quick_only
from tests.tolerances import FP32

PREFIX, QUESTION = 64, 32
AFTER = np.array([32, 21, 14, 9])
"""Tokens of each row that come as the second chunk."""
prune = jax.jit(kv.prune, static_argnames=("policy", "reserved_slots"))


@functools.cache
def in_chunks() -> tuple[jax.Array, kv.Scored]:
    """The contract's prompt in two chunks, with the sums of all policies."""
    inputs = random_inputs()
    modality = np.asarray(inputs.prompt.modality)
    more, kinds = np.zeros((2, len(LENGTHS), QUESTION), np.int32)
    for row, (length, after) in enumerate(zip(LENGTHS, AFTER, strict=True)):
        more[row, :after] = inputs.tokens[row, length - after : length]
        kinds[row, :after] = modality[row, length - after : length]
    prompts = kv.make_prompt(modality[:, :PREFIX], LENGTHS - AFTER), kv.make_prompt(kinds, AFTER)
    policies = tuple(CONTRACT.values())

    def run(params, first, second, prompts):
        common = {"policies": policies}
        _, scored = kv.score(DECODER, params, first, prompts[0], **common, complete=False)
        logits, scored = kv.score(DECODER, params, second, prompts[1], **common, before=scored)
        return logits, kv.probe(DECODER, params, inputs.question, inputs.question_prompt, scored, policies)

    return jax.jit(run)(params_of(), inputs.tokens[:, :PREFIX], more, prompts)


@pytest.mark.parametrize("name", quick_only(CONTRACT))
def test_two_chunks_equal_one(name):
    logits, scored = in_chunks()
    np.testing.assert_allclose(logits, episode(name).logits, **FP32)
    pruned = prune(scored, CONTRACT[name])
    assert_same_cache(jax.device_get(pruned), episode(name).pruned, **FP32)


@pytest.mark.parametrize(("name", "budget"), quick_first([("h2o", 40), ("h2o", 0.5), ("acckv", 40), ("acckv", 0.5)]))
def test_many_budgets_from_one_prefill(name, budget):
    whole, _ = jax.tree.flatten(scored_by(name))
    policy = dataclasses.replace(CONTRACT[name], budget=budget)
    one_shot = run_episode(MODEL, policy, params_of(), random_inputs())
    assert_same_cache(jax.device_get(prune(scored_by(name), policy)), jax.device_get(one_shot.pruned), **FP32)
    assert not any(x.is_deleted() for x in whole)


def start(sampler=kv.greedy, stop: tuple[int, ...] = (), seed: int = 0) -> kv.DecodeState:
    """A request on the full cache of the contract's prompt, with room for 6 tokens."""
    run = episode("full")
    cache = jax.tree.map(jnp.array, run.pruned)
    return kv.start_decoding(jnp.array(run.logits), cache, jax.random.key(seed), sampler=sampler, stop_token_ids=stop)


@functools.partial(jax.jit, static_argnames=("steps", "sampler", "stop"))
def decode(params, state, *, steps=6, sampler=kv.greedy, stop=()):
    return kv.decode(DECODER, params, state, CONTRACT["full"], steps=steps, sampler=sampler, stop_token_ids=stop)


@functools.cache
def greedy_tokens() -> np.ndarray:
    return np.asarray(decode(params_of(), start())[0])


def test_the_loop_takes_the_likeliest_token_of_every_step():
    step = jax.jit(kv.decode_step, static_argnums=(0, 4))
    state = start()
    token, cache = state.token, state.cache
    np.testing.assert_array_equal(token, episode("full").logits.argmax(-1))
    for number in range(6):
        logits, cache = step(DECODER, params_of(), token, cache, CONTRACT["full"], state.active)
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        np.testing.assert_array_equal(token, greedy_tokens()[:, number])


EVICTING = ("h2o", "h2o_every_4", "streaming_llm_every_4", "acckv_every_2", "acckv_plus_every_4")


@pytest.mark.parametrize("name", quick_only(EVICTING))
def test_a_loop_that_evicts_equals_single_steps(name):
    policy = CONTRACT[name]
    step = jax.jit(kv.decode_step, static_argnums=(0, 4))
    loop = jax.jit(functools.partial(kv.decode, DECODER), static_argnames=("policy", "steps", "stop_token_ids"))
    run = episode(name)
    first = kv.start_decoding(run.logits, jax.tree.map(jnp.array, run.pruned), jax.random.key(0))
    stop = (int(first.token[1]),)  # so that a row may end in the midst
    token, cache, active, expected = first.token, first.cache, first.active, []
    for _ in range(11):
        logits, cache = step(DECODER, params_of(), token, cache, policy, active)
        token = jnp.where(active, jnp.argmax(logits, -1), token).astype(jnp.int32)
        active = active & (token != stop[0])
        expected.append(np.asarray(token))
    some, _, state = loop(params_of(), first, policy=policy, steps=7, stop_token_ids=stop)
    others, _, state = loop(params_of(), state, policy=policy, steps=4, stop_token_ids=stop)
    np.testing.assert_array_equal(np.concatenate([some, others], axis=1), np.stack(expected, axis=1))
    assert_same_cache(jax.device_get(state.cache), jax.device_get(cache), **FP32)


def test_a_row_that_stops_repeats_its_token_and_leaves_the_others_alone():
    stop = int(greedy_tokens()[0, 2])
    first = [np.flatnonzero(row == stop) for row in greedy_tokens()]
    tokens, number, state = decode(params_of(), start(), stop=(stop,))
    assert (np.asarray(start().token) != stop).all()
    for row, (ours, theirs, at) in enumerate(zip(np.asarray(tokens), greedy_tokens(), first, strict=True)):
        end = at[0] if len(at) else 6
        np.testing.assert_array_equal(ours[: end + 1], theirs[: end + 1])
        assert (ours[end + 1 : int(number)] == stop).all()
        assert int(state.cache.length[row]) == LENGTHS[row] + min(end + 1, int(number))
        assert bool(state.active[row]) == (end == 6)


def test_the_loop_ends_when_all_rows_have_ended():
    everything = tuple(range(MODEL.vocab))
    _, number, _ = decode(params_of(), start(), stop=everything)
    assert int(number) == 1
    _, number, _ = decode(params_of(), start(stop=everything), stop=everything)
    assert int(number) == 0


def test_sampling_is_reproducible_and_goes_on_between_calls():
    sampler = kv.Sample(temperature=1.5, top_k=20)
    once = decode(params_of(), start(sampler), sampler=sampler)[0]
    np.testing.assert_array_equal(decode(params_of(), start(sampler), sampler=sampler)[0], once)
    assert (decode(params_of(), start(sampler, seed=1), sampler=sampler)[0] != once).any()
    first, _, state = decode(params_of(), start(sampler), steps=3, sampler=sampler)
    second, _, _ = decode(params_of(), state, steps=3, sampler=sampler)
    np.testing.assert_array_equal(jnp.concatenate([first, second], axis=1), once)


def test_cold_or_narrow_sampling_is_greedy():
    logits, key = jnp.array(episode("full").logits), jax.random.key(0)
    for sampler in (kv.Sample(temperature=1e-4), kv.Sample(temperature=3.0, top_k=1)):
        np.testing.assert_array_equal(sampler(logits, key), kv.greedy(logits, key))


def test_sampling_follows_the_softmax_of_the_likeliest_tokens():
    logits = jnp.array([[2.0, 1.0, 0.0, -1.0, 1.5]])
    draws = jax.vmap(lambda key: kv.Sample(temperature=2.0, top_k=3)(logits, key))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    weights = np.exp(np.array([2.0, 1.0, -np.inf, -np.inf, 1.5]) / 2)
    shares = np.bincount(np.asarray(draws)[:, 0], minlength=5) / 20_000
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.015)
    assert shares[2] == shares[3] == 0


def test_decoding_one_policys_cache_leaves_the_scored_prompt_alive():
    logits, scored = in_chunks()
    donated = jax.jit(
        functools.partial(kv.decode, DECODER, policy=kv.CachePolicy(), steps=2),
        donate_argnums=1,
    )
    for name in ("full", "acckv", "full"):
        cache = kv.prune(scored, CONTRACT[name], reserved_slots=8)
        donated(params_of(), state=kv.start_decoding(logits, cache, jax.random.key(0)))
        deleted = [leaf for leaf in jax.tree.leaves(scored) if leaf.is_deleted()]
        assert not deleted
        assert cache.layers[0].k.is_deleted()  # the pruned cache itself was donated


def test_a_repeated_prompt_is_as_many_equal_rows():
    inputs = random_inputs()
    prompt = kv.make_prompt(np.asarray(inputs.prompt.modality)[:1], LENGTHS[:1])
    policies = (CONTRACT["h2o"], CONTRACT["full"])
    score = jax.jit(functools.partial(kv.score, DECODER, policies=policies))
    _, one = score(params_of(), inputs.tokens[:1], prompt)
    three = kv.repeat_rows(one, 3)
    for row in range(3):
        for ours, theirs in zip(three.cache.layers, one.cache.layers, strict=True):
            np.testing.assert_array_equal(ours.k[row], theirs.k[0])
            np.testing.assert_array_equal(ours.index[row], theirs.index[0])
        for ours, theirs in zip(three.sums[0], one.sums[0], strict=True):
            np.testing.assert_array_equal(ours[row], theirs[0])
    np.testing.assert_array_equal(three.cache.length, np.repeat(one.cache.length, 3))
    jax.tree.map(lambda x: x.delete(), kv.repeat_rows(one, 1))  # as donating it does
    assert not any(x.is_deleted() for x in jax.tree.leaves(one))
    with pytest.raises(ValueError, match="only a prompt of one row can be repeated, and this one has 3"):
        kv.repeat_rows(three, 2)

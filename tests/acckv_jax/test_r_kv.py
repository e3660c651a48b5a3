"""R-KV against NumPy, through prompt, decoding in both loops, a second question and stacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.policies.r_kv import redundancy
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.recorded import DECODER, Recording, record
from tests.oracles import r_kv_numpy as oracle
from tests.tiers import quick_first

PROMPT, STEPS, BUDGET, EVERY, WINDOW = 48, 40, 20, 8, 4
OPTIONS = {"kernel_size": 3, "attention_weight": 0.3, "threshold": 0.6}
POLICY = kv.RKV(budget=BUDGET, evict_every=EVERY, window_size=WINDOW, **OPTIONS)


def tokens_of(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q [T, 4, 8], k and v [T, 2, 8]: keys that come back, and come close to each other."""
    rng = np.random.default_rng(seed)
    themes = 1.5 * rng.standard_normal((6, 8))
    k = themes[rng.integers(0, 6, (count, 2))] + rng.standard_normal((count, 2, 8))
    q = themes[rng.integers(0, 6, (count, 4))] + rng.standard_normal((count, 4, 8))
    return q, k, rng.standard_normal((count, 2, 8))


def expected(q: np.ndarray, k: np.ndarray) -> tuple[list, float]:
    """Kept indices by head after the prompt and after every eviction, and the smallest gap that decided."""
    history, gap = [], np.inf
    now = [np.arange(PROMPT)] * 2
    for end in range(PROMPT, PROMPT + STEPS + 1, EVERY):
        for head in range(2):
            index = np.concatenate([now[head], np.arange(max(now[head][-1] + 1, PROMPT), end)])
            queries = q[end - WINDOW : end, 2 * head : 2 * head + 2].swapaxes(0, 1)
            score = oracle.scores(
                queries, k[index, head], share=OPTIONS["attention_weight"], kernel=3, threshold=OPTIONS["threshold"]
            )
            now[head] = index[oracle.kept(score, WINDOW, BUDGET)]
            ranked = -np.sort(-score)
            gap = min(gap, ranked[BUDGET - WINDOW - 1] - ranked[BUDGET - WINDOW])
        history.append(list(now))
    return history, gap


def kept(layer: kv.LayerCache) -> list[np.ndarray]:
    index, valid = (np.asarray(x)[0] for x in (layer.index, layer.valid))
    return [one[held] for one, held in zip(index, valid, strict=True)]


@functools.partial(jax.jit, static_argnames="policy")
def prefill(recording: Recording, prompt: kv.Prompt, policy: kv.CachePolicy):
    return kv.prefill(DECODER, recording, prompt.modality, prompt, policy, reserved_slots=policy.evict_every)


@jax.jit
def step_by_step(recording: Recording, cache: kv.KVCache):
    def step(cache, _):
        _, cache = kv.decode_step(DECODER, recording, jnp.zeros(1, int), cache, POLICY, jnp.ones(1, bool))
        return cache, cache.layers[0]

    return jax.lax.scan(step, cache, length=STEPS)


@jax.jit
def in_one_loop(recording: Recording, logits: jax.Array, cache: kv.KVCache):
    state = kv.start_decoding(logits, cache, jax.random.key(0))
    return kv.decode(DECODER, recording, state, POLICY, steps=STEPS)[2].cache


@pytest.mark.parametrize("seed", quick_first(range(6)))
def test_equals_numpy_after_the_prompt_and_every_eviction(seed):
    q, k, v = tokens_of(seed, PROMPT + STEPS)
    history, gap = expected(q, k)
    assert gap > 1e-6, "a choice hangs on rounding: use another seed"
    recording = record((q, k, v))
    prompt = kv.make_prompt(np.zeros((1, PROMPT), int))
    POLICY.check(kv.count_tokens(prompt))
    logits, cache = prefill(recording, prompt, POLICY)
    np.testing.assert_array_equal(kept(cache.layers[0]), history[0])
    decoded, after = step_by_step(recording, cache)
    for number, indices in enumerate(history[1:], 1):
        np.testing.assert_array_equal(kept(jax.tree.map(lambda x, n=number: x[n * EVERY - 1], after)), indices)
    looped = in_one_loop(recording, logits, cache)
    np.testing.assert_array_equal(kept(looped.layers[0]), history[-1])
    for cache in (decoded, looped):
        newest = cache.layers[0].recent_queries[0].swapaxes(0, 1)  # [window, N, H]
        np.testing.assert_allclose(newest, q[PROMPT + STEPS - WINDOW : PROMPT + STEPS], rtol=1e-6)


def test_redundancy_lets_off_the_last_of_alike_keys():
    rng = np.random.default_rng(3)
    keys, valid = rng.standard_normal((2, 3, 300, 6)), rng.random((2, 1, 300)) < 0.9
    keys[:, :, 100:] += 2 * keys[:, :, :200]  # alike, over the edges of blocks
    valid = np.broadcast_to(valid, keys.shape[:3])
    found = jax.jit(redundancy, static_argnames="threshold")(keys.astype(np.float32), jnp.asarray(valid), 0.5)
    for row, head in np.ndindex(2, 3):
        own = valid[row, head]
        want = oracle.redundancy(keys[row, head][own], 0.5)
        np.testing.assert_allclose(found[row, head][own], want, rtol=1e-4)


@pytest.mark.parametrize("scans", quick_first([False, True]))
def test_chunks_questions_and_stacks_keep_the_last_queries(scans):
    decoder, params, inputs, prompt = tiny_decoder(scans=scans)
    policy = kv.RKV(budget=0.5, evict_every=8)
    ids, modality = np.asarray(inputs), np.asarray(prompt.modality)
    head, tail = (kv.make_prompt(part) for part in (modality[:, :60], modality[:, 60:]))
    _, before = kv.jitted.score(decoder, params, ids[:, :60], head, (policy, kv.H2O()), complete=False)
    _, scored = kv.jitted.score(decoder, params, ids[:, 60:], tail, (policy, kv.H2O()), before=before)
    _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, policy, reserved_slots=8)
    pruned = kv.prune(scored, policy, reserved_slots=8)
    for ours, theirs in zip(pruned.layers, cache.layers, strict=True):
        np.testing.assert_array_equal(ours.index, theirs.index)
        np.testing.assert_allclose(ours.recent_queries, theirs.recent_queries, rtol=1e-5, atol=1e-6)
    assert kv.prune(scored, kv.H2O(budget=0.5)).layers[0].recent_queries is None
    question = kv.make_prompt(np.zeros((1, 5), int))
    _, asked = kv.jitted.extend(decoder, params, ids[:, :5], question, cache, policy)
    old, new = (one.layers[1].recent_queries for one in (cache, asked))
    np.testing.assert_array_equal(new[:, :, :3], old[:, :, 5:])
    answer = kv.generate(decoder, params, inputs, prompt, policy, max_new_tokens=20)
    assert answer.state.cache.layers[0].slots == 32 + 8


def test_a_cache_of_another_policy_is_refused():
    decoder, params, inputs, prompt = tiny_decoder()
    _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=8)
    with pytest.raises(ValueError, match="this cache holds 0 of them: prune the prompt by the same policy"):
        kv.jitted.decode_step(
            decoder, params, jnp.zeros(1, int), cache, kv.RKV(budget=0.5, evict_every=8), jnp.ones(1, bool)
        )
    _, scored = kv.jitted.score(decoder, params, inputs, prompt, (kv.H2O(),))
    with pytest.raises(ValueError, match="it reads the last 8 queries, and the prompt was scored for QuerySet"):
        kv.prune(scored, kv.RKV(budget=0.5))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"attention_weight": 1.5}, "attention_weight is a share from 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kv.RKV(budget=0.5, **options)

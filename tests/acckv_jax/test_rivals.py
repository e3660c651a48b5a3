"""The rivals of AccKV against kvpress and NumPy, and pruning between 2,000 decode steps."""

import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer
from tests.acckv_jax.recorded import DECODER, Recording, record
from tests.acckv_jax.tiny_dense import dense_run
from tests.oracles.cases import decided_cases, pad, random_case, random_stream
from tests.oracles.every_n_numpy import Slots, decode, floors_and_mass
from tests.oracles.fastv_numpy import fastv_prefill
from tests.oracles.h2o_numpy import h2o_prefill, heavy_and_recent
from tests.oracles.look_m_numpy import look_m_prefill
from tests.oracles.mix_kv_numpy import mix_kv_prefill
from tests.oracles.streaming_numpy import sinks_and_recent
from tests.tiers import quick_first, quick_only
from tests.tolerances import FP32

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PROMPT, STEPS, CHUNK = 64, 2000, 100


@functools.partial(jax.jit, static_argnames=("policy", "reserved_slots"))
def prefill(recording: Recording, prompt: kv.Prompt, policy: kv.CachePolicy, reserved_slots: int = 0):
    return kv.prefill(DECODER, recording, prompt.modality, prompt, policy, reserved_slots=reserved_slots)


def kept(layer: kv.LayerCache, row: int, head: int) -> np.ndarray:
    return np.asarray(layer.index)[row, head][np.asarray(layer.valid)[row, head]]


@pytest.mark.parametrize("number", quick_first(range(8), 2))
def test_snapkv_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN / "kvpress_snapkv.npz") as golden:
        q, k = (golden[f"{name}_{number}"].swapaxes(0, 1)[None] for name in "qk")
        expected, (window, kernel) = golden[f"kept_{number}"], golden[f"window_kernel_{number}"].tolist()
    policy = kv.make_policy("snapkv", budget=expected.shape[1], window_size=window, kernel_size=kernel)
    prompt = kv.make_prompt(np.ones(k.shape[:2], int))
    policy.check(kv.count_tokens(prompt))
    _, cache = prefill(Recording(q, k, k), prompt, policy)
    for head, slots in enumerate(expected):
        np.testing.assert_array_equal(kept(cache.layers[0], 0, head), slots)


@pytest.mark.parametrize("number", range(6))
def test_streaming_llm_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN / "kvpress_streaming_llm.npz") as golden:
        length, sinks = golden[f"length_sinks_{number}"].tolist()
        expected = golden[f"kept_{number}"]
    policy = kv.make_policy("streaming_llm", budget=expected.shape[1], sinks=sinks)
    bucket = 200  # one bucket for all lengths
    noise = np.random.default_rng(number).standard_normal((1, bucket, len(expected), 8)).astype(np.float32)
    prompt = kv.make_prompt(np.ones((1, bucket), int), np.array([length]))
    policy.check(kv.count_tokens(prompt))
    _, cache = prefill(Recording(noise, noise, noise), prompt, policy)
    for head, slots in enumerate(expected):
        np.testing.assert_array_equal(kept(cache.layers[0], 0, head), slots)


@pytest.mark.parametrize("number", quick_first(range(6), 2))
def test_keydiff_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN / "kvpress_keydiff.npz") as golden:
        k, expected = golden[f"k_{number}"].swapaxes(0, 1)[None], golden[f"kept_{number}"]
    policy = kv.make_policy("keydiff", budget=expected.shape[1])
    _, cache = prefill(Recording(k, k, k), kv.make_prompt(np.ones(k.shape[:2], int)), policy)
    for head, slots in enumerate(expected):
        np.testing.assert_array_equal(kept(cache.layers[0], 0, head), slots)


@pytest.mark.parametrize("number", quick_first(range(6), 2))
def test_tova_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN / "kvpress_tova.npz") as golden:
        q, k = (golden[f"{name}_{number}"].swapaxes(0, 1)[None] for name in "qk")
        expected = golden[f"kept_{number}"]
    policy = kv.make_policy("tova", budget=expected.shape[1])
    _, cache = prefill(Recording(q, k, k), kv.make_prompt(np.ones(k.shape[:2], int)), policy)
    for head, slots in enumerate(expected):
        np.testing.assert_array_equal(kept(cache.layers[0], 0, head), slots)


def ragged(policy: kv.CachePolicy, oracle, count: int = 8):
    """A padded batch pruned by a policy, and what the oracle says of each row; undecided rows are drawn again."""
    rng, found = np.random.default_rng(7), []
    while len(found) < count:
        case = random_case(rng, layout=("interleaved", "blocks")[len(found) % 2])
        expected, margin = oracle(case)
        if margin > 1e-4:
            found.append((case, expected))
    cases, expected = zip(*found, strict=True)
    batch = pad(cases, fill=1e3)
    prompt = kv.make_prompt(batch["modality"], batch["lengths"])
    policy.check(kv.count_tokens(prompt))
    _, cache = prefill(Recording(batch["q"], batch["k"], batch["v"]), prompt, policy)
    return jax.device_get(cache.layers[0]), expected


@pytest.mark.parametrize(("window", "kernel"), quick_first([(8, 5), (1, 1), (16, 7)]))
def test_mix_kv_keeps_the_slots_of_the_paper(window, kernel):
    def oracle(case):
        return mix_kv_prefill(case.q, case.k, case.v, capacity=24, window=window, kernel=kernel)

    policy = kv.make_policy("mix_kv", budget=24, window_size=window, kernel_size=kernel)
    layer, expected = ragged(policy, oracle)
    for row, heads in enumerate(expected):
        for head, slots in enumerate(heads):
            np.testing.assert_array_equal(kept(layer, row, head), slots)


@pytest.mark.parametrize(
    ("merge", "budget", "recent"),
    quick_first([("pivotal", 0.4, 0.5), ("averaged", 24, 0.0), ("weighted", 0.3, 0.25), ("pivotal", 0.25, 1.0)]),
)
def test_look_m_keeps_and_merges_as_the_paper_says(merge, budget, recent):
    def oracle(case):
        return look_m_prefill(case.q, case.k, case.v, case.modality, budget=budget, recent=recent, merge=merge)

    layer, expected = ragged(kv.make_policy("look_m", budget=budget, recent=recent, merge=merge), oracle)
    for row, heads in enumerate(expected):
        for head, theirs in enumerate(heads):
            valid = layer.valid[row, head]
            np.testing.assert_array_equal(layer.index[row, head][valid], theirs.index)
            np.testing.assert_array_equal(layer.multiplicity[row, head][valid], theirs.multiplicity)
            np.testing.assert_allclose(layer.k[row, head][valid], theirs.keys, **FP32)
            np.testing.assert_allclose(layer.v[row, head][valid], theirs.values, **FP32)


@pytest.mark.parametrize(("filter_layer", "scans"), quick_first([(2, True), (1, False), (3, True)]))
def test_fastv_keeps_the_slots_of_the_paper_in_every_layer(filter_layer, scans):
    model = TinyTransformer(num_layers=4, scans=scans)
    params, lengths = model.init(jax.random.key(3), vocabulary=96), np.array([64, 49])
    params |= {name: 3 * params[name] for name in "qk"}
    rng = np.random.default_rng(3)
    tokens = np.stack([rng.permutation(96)[:64] for _ in lengths]).astype(np.int32)
    modality = np.repeat([0, 1, 2, 0], [4, 24, 18, 18])[None].repeat(2, 0)
    prompt = kv.make_prompt(modality, lengths)
    policy = kv.make_policy("fastv", budget=0.5, filter_layer=filter_layer)
    policy.check(kv.count_tokens(prompt))
    decoder = kv.Decoder(model, model.num_layers, scans)
    _, cache = kv.jitted.prefill(decoder, params, tokens, prompt, policy)
    for row, length in enumerate(lengths):
        attention = [layer.attention[0] for layer in dense_run(params, tokens[row : row + 1, :length])]
        expected, gap = fastv_prefill(attention, modality[row, :length], budget=0.5, filter_layer=filter_layer)
        assert gap > 1e-4, "a choice hangs on rounding: use another seed"
        for layer, slots in zip(cache.layers, expected, strict=True):
            for head in range(model.kv_heads):
                np.testing.assert_array_equal(kept(layer, row, head), slots)
    most = policy.filter_layer * 64 + (4 - policy.filter_layer) * 32
    assert kv.cache_bytes(cache).prompt == 2 * 2 * model.kv_heads * model.head_dim * 4 * most


@pytest.mark.parametrize(("budget", "recent"), [(0.25, 0.5), (20, 0.3), (0.5, 0.0)])
def test_h2o_prefill_keeps_the_slots_of_the_paper(budget, recent):
    cases = [case for case, _ in decided_cases(seed=5, options={"budget": 1.0}, count=8)]
    batch = pad(cases, fill=1e3)
    policy = kv.make_policy("h2o", budget=budget, recent=recent)
    prompt = kv.make_prompt(batch["modality"], batch["lengths"])
    _, cache = prefill(Recording(batch["q"], batch["k"], batch["v"]), prompt, policy)
    for row, case in enumerate(cases):
        for head, slots in enumerate(h2o_prefill(case.q, case.k, budget=budget, recent_ratio=recent)):
            np.testing.assert_array_equal(kept(cache.layers[0], row, head), slots)


@pytest.fixture(autouse=True)
def no_traces_so_far():
    """Chex counts by source code, so across the cases of one test."""
    chex.clear_trace_counter()


def steps_of(policy: kv.CachePolicy):
    """`CHUNK` decode steps as one donated program that may be traced once."""

    def run(recording: Recording, cache: kv.KVCache):
        def step(cache: kv.KVCache, _: None):
            nothing, active = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
            out, cache = kv.decode_step(DECODER, recording, nothing, cache, policy, active)
            return cache, out

        return jax.lax.scan(step, cache, length=CHUNK)

    return jax.jit(chex.assert_max_traces(run, n=1), donate_argnames="cache")


EVERY_N = {
    "h2o": (kv.H2O(budget=32, evict_every=1), heavy_and_recent()),
    "h2o_every_16": (kv.EvictEvery(kv.H2O(budget=32, evict_every=0), 16), heavy_and_recent()),
    "streaming_llm": (kv.StreamingLLM(budget=32, evict_every=1), sinks_and_recent()),
    "acckv_every_16": (
        kv.AccKV(budget=32, tau=0.6, recent=6, floor=0.1, evict_every=16),
        floors_and_mass(PROMPT, recent=6, floor=0.1),
    ),
}


@pytest.mark.parametrize("name", quick_only(EVERY_N, ("h2o_every_16",)))
def test_2000_steps_at_a_fixed_capacity_equal_a_numpy_loop(name):
    policy, select = EVERY_N[name]
    rng = np.random.default_rng(1)
    case, stream = random_case(rng, layout="blocks", length=PROMPT, tau=0.6), random_stream(rng, STEPS)
    recording = record(tuple(x.swapaxes(0, 1) for x in (case.q, case.k, case.v)), stream)
    reserved = policy.reserved_slots(STEPS)
    prompt = kv.make_prompt(case.modality[None])
    policy.check(kv.count_tokens(prompt))
    _, cache = prefill(recording, prompt, policy, reserved_slots=reserved)
    first = jax.device_get(cache.layers[0])
    assert first.slots == 32 + reserved == 32 + policy.evict_every

    def slots_of(layer: kv.LayerCache, head: int) -> Slots:
        valid = np.asarray(layer.valid)[0, head]
        index, modality = (np.asarray(x)[0, head][valid].astype(int) for x in (layer.index, layer.modality))
        k, v, mass = (np.asarray(x)[0, head][valid].astype(float) for x in (layer.k, layer.v, layer.mass))
        return Slots(index, k, v, mass, modality)

    before = [slots_of(first, head) for head in range(2)]
    expected = decode(before, PROMPT, *stream, select=select, capacity=32, every=policy.evict_every)
    assert expected.margin > 5e-6 or policy.mass_queries is None, "a choice hangs on rounding: use another seed"
    program = steps_of(policy)
    for start in range(0, STEPS, CHUNK):
        cache, out = program(recording, cache)
        np.testing.assert_allclose(out[:, 0].reshape(CHUNK, 4, 16), expected.outputs[start : start + CHUNK], **FP32)
        assert cache.layers[0].slots == first.slots
        if (start + CHUNK) % policy.evict_every == 0:
            for head in range(2):
                now = expected.kept[(start + CHUNK) // policy.evict_every - 1][head]
                np.testing.assert_array_equal(kept(cache.layers[0], 0, head), now)
    for head, theirs in enumerate(expected.slots):
        ours = slots_of(jax.device_get(cache.layers[0]), head)
        np.testing.assert_array_equal(ours.index, theirs.index)
        for field in ("keys", "values", "mass")[: 2 if policy.mass_queries is None else 3]:
            np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), **FP32, err_msg=field)

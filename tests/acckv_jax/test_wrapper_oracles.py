"""AdaKV, CriticalKV, Smoothed, CLIE and 4-bit storage against kvpress's choices and NumPy."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer
from acckv_jax.wrappers.critical_kv import output_norms
from acckv_jax.wrappers.quantized import QuantizedSlots
from acckv_jax.wrappers.smoothed import low_frequencies
from tests.acckv_jax.recorded import DECODER as REPLAY
from tests.acckv_jax.recorded import Recording
from tests.oracles import wrappers_numpy as oracle
from tests.oracles.attention_numpy import causal_attention
from tests.tiers import quick_only
from tests.tolerances import FP32

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "kvpress_wrappers.npz"
NAMES = np.load(GOLDEN)["names"].tolist()


low = jax.jit(low_frequencies, static_argnames=("energy", "roll_off"))


def kept(layer: kv.LayerCache, row: int, length: int) -> np.ndarray:
    """[K, length] which tokens are kept."""
    mask = np.zeros((layer.valid.shape[1], length), bool)
    for head, valid in enumerate(np.asarray(layer.valid)[row]):
        mask[head, np.asarray(layer.index)[row, head][valid]] = True
    return mask


@pytest.mark.parametrize("number", quick_only(range(len(NAMES)), (0, 7)))
def test_keeps_what_kvpress_keeps(number):
    with np.load(GOLDEN) as golden:
        q, k, v, w_o, expected = (golden[f"{name}_{number}"] for name in ("q", "k", "v", "w_o", "kept"))
        budget = int(golden[f"budget_{number}"])
    name, length = NAMES[number], k.shape[1]
    options: dict[str, Any] = {"window_size": 8} if "snapkv" in name else {}
    options |= {"most": float(length)} if "ada_kv" in name else {}
    policy = kv.make_policy(name, budget=budget, **options)
    recording = Recording(*(x.swapaxes(0, 1)[None] for x in (q, k, v)), output_weights=w_o)
    prompt = kv.make_prompt(np.ones((1, length), int))
    policy.check(kv.count_tokens(prompt))
    _, cache = kv.jitted.prefill(REPLAY, recording, prompt.modality, prompt, policy)
    np.testing.assert_array_equal(kept(cache.layers[0], 0, length), expected)


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_the_oracle_keeps_what_kvpress_keeps(number):
    with np.load(GOLDEN) as golden:
        q, k, v, w_o = (golden[f"{name}_{number}"].astype(float) for name in ("q", "k", "v", "w_o"))
        expected, budget = golden[f"kept_{number}"], int(golden[f"budget_{number}"])
    attention = causal_attention(q, k).reshape(len(k), -1, *[k.shape[1]] * 2).mean(1)
    inner = oracle.Inner("snapkv" if "snapkv" in NAMES[number] else "knorm", np.ones(k.shape[1], int), budget)
    scores = inner.scores(attention, k)
    ada = oracle.ada_kv(scores, budget, floor=0.2, most=k.shape[1])
    if NAMES[number].startswith("ada_kv"):
        np.testing.assert_array_equal(ada, expected)
    else:
        counts = ada.sum(1).tolist() if "ada_kv" in NAMES[number] else [budget] * len(k)
        np.testing.assert_array_equal(oracle.critical_kv(scores, oracle.output_norms(v, w_o), counts), expected)


LAYERS, TOKENS, LENGTHS, SHARES = 3, 64, (64, 49), (1.3, 1.0, 0.7)
MODEL = TinyTransformer(num_layers=LAYERS)
DECODER = kv.Decoder(MODEL, LAYERS)
MODALITY = np.stack([np.repeat([0, 1, 2, 0], [4, 28, 28, 4]), np.repeat([0, 2, 1, 0], [4, 20, 21, 19])])
INNER: dict[str, kv.CachePolicy] = {
    "snapkv": kv.SnapKV(budget=0.4, window_size=8),
    "h2o": kv.H2O(budget=0.4, evict_every=0),
    "acckv_plus": kv.AccKV.plus(budget=0.4, merge="none"),
    "knorm": kv.Knorm(budget=0.4),
}


ENERGY = {False: 0.7, True: 0.99}
"""Norms of keys vary less than attention: 0.7 of the energy is in their mean."""


@functools.cache
def model() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Parameters with sharp attention, and a prompt without a token twice: their key norms would tie."""
    params = MODEL.init(jax.random.key(5), vocabulary=TOKENS)
    gains = {"embed": 8.0, "q": 1.5, "k": 1.5, "v": 1.0, "o": 1.0}
    params = {name: np.asarray(x) * np.float32(gains[name]) for name, x in params.items()}
    rng = np.random.default_rng(2)
    return params, np.stack([rng.permutation(TOKENS) for _ in LENGTHS]).astype(np.int32)


@functools.cache
def scored() -> kv.Scored:
    params, tokens = model()
    prompt = kv.make_prompt(MODALITY, np.array(LENGTHS))
    policies = (*INNER.values(), kv.CriticalKV(INNER["h2o"]))
    return kv.jitted.score(DECODER, params, tokens, prompt, policies)[1]


@functools.cache
def dense(row: int) -> list[dict[str, np.ndarray]]:
    """Attention [K, l, l] (mean over groups), keys, values [K, l, H] and W_O of every layer, in float64."""
    params, tokens = model()
    params = {name: x.astype(float) for name, x in params.items()}
    x, found = params["embed"][tokens[row, : LENGTHS[row]]], []
    for number in range(LAYERS):
        q, k, v = (np.einsum("td,dnh->nth", x, params[name][number]) for name in "qkv")
        weights, w_o = causal_attention(q, k), params["o"][number]
        attention = weights.reshape(len(k), -1, *weights.shape[1:])
        found.append({"attention": attention.mean(1), "k": k, "v": v, "w_o": w_o})
        out = np.einsum("kgij,kjh->kgih", attention, v).reshape(q.shape)
        x = x + np.einsum("nth,nhd->td", out, w_o)
    return found


def expected(wrapper: str, name: str, row: int, number: int, share: float, protected: int) -> np.ndarray:
    """[K, l] which tokens `wrapper` around an inner policy keeps in a layer."""
    length, layers = LENGTHS[row], dense(row)
    here = layers[number]
    attention = here["attention"]
    if wrapper == "clie" and number > 0:
        attention = np.broadcast_to(layers[0]["attention"].mean(0), attention.shape)
    inner = oracle.Inner(name, MODALITY[row, :length], round(0.4 * share * length))
    scores = inner.scores(attention, here["k"])
    if wrapper == "clie" and number > 0:
        scores = np.where(np.isinf(scores), scores, scores * np.linalg.norm(here["v"], axis=-1))
    if wrapper == "smoothed":
        scores = np.stack([oracle.smoothed(score, energy=ENERGY[name == "knorm"]) for score in scores])
    sure = np.isin(np.arange(length), [*range(protected), *range(length - protected, length)])
    if wrapper == "ada_kv":
        return oracle.ada_kv(np.where(sure, np.inf, scores), inner.budget, floor=0.2, most=1.5)
    if wrapper == "critical_kv":
        counts = [inner.budget] * len(scores)
        norms = oracle.output_norms(here["v"], here["w_o"])
        return oracle.critical_kv(np.where(sure, np.inf, scores), norms, counts)
    return inner.select(scores, attention, sure)


WRAPPERS = {
    "ada_kv": lambda inner: kv.AdaKV(inner, most=1.5),
    "critical_kv": kv.CriticalKV,
    "smoothed": lambda inner: kv.Smoothed(inner, energy=ENERGY[inner == INNER["knorm"]]),
    "clie": lambda inner: kv.CLIE(inner, scored_layers=1),
}
AROUND = {
    "alone": lambda make, inner: make(inner),
    "protected": lambda make, inner: kv.Protected(make(inner), first=2, last=2),
    "per_layer": lambda make, inner: kv.PerLayer(make(inner), shares=SHARES),
    "in_per_layer": lambda make, inner: make(kv.PerLayer(inner, shares=SHARES)),
}
CASES = [(wrapper, name, "alone") for wrapper in WRAPPERS for name in INNER] + [
    (wrapper, "snapkv", around) for wrapper in WRAPPERS for around in ("protected", "per_layer", "in_per_layer")
]
CASES = [case for case in CASES if case[:2] not in (("critical_kv", "knorm"), ("clie", "knorm"))]
QUICK = [("ada_kv", "h2o", "alone"), ("critical_kv", "snapkv", "alone"), ("smoothed", "knorm", "alone")]


@pytest.mark.parametrize(
    ("wrapper", "name", "around"), quick_only(CASES, [*QUICK, ("clie", "acckv_plus", "alone"), CASES[-3]])
)
def test_keeps_what_numpy_keeps(wrapper, name, around):
    policy = AROUND[around](WRAPPERS[wrapper], INNER[name])
    policy.check_layers(LAYERS)
    pruned, changed = kv.prune(scored(), policy), 0
    for number, layer in enumerate(jax.device_get(pruned).layers):
        share, protected = SHARES[number] if "per_layer" in around else 1.0, 2 if around == "protected" else 0
        for row, length in enumerate(LENGTHS):
            wanted, plain = (expected(one, name, row, number, share, protected) for one in (wrapper, "none"))
            np.testing.assert_array_equal(kept(layer, row, length), wanted)
            changed += (wanted != plain).sum()
    assert changed


@pytest.mark.parametrize("outer", ["ada_kv", "critical_kv"])
def test_a_selection_leaves_merging_to_acckv(outer):
    """Every media token is kept, or merged into a kept one of its head and modality where there is any."""
    wrapped = WRAPPERS[outer](kv.AccKV.plus(budget=0.4))
    for layer in jax.device_get(kv.prune(scored(), wrapped)).layers:
        for row, length in enumerate(LENGTHS):
            for head, valid in enumerate(layer.valid[row]):
                kinds = layer.modality[row, head][valid]
                alone = [kind for kind in (1, 2) if kind not in kinds]
                lost = sum((MODALITY[row, :length] == kind).sum() for kind in alone)
                assert layer.multiplicity[row, head][valid].sum() == length - lost


def test_heads_share_a_budget_and_what_none_uses_is_freed():
    cache = kv.prune(scored(), kv.AdaKV(kv.H2O(budget=0.4, evict_every=0), most=2.0), reserved_slots=4)
    counts = np.stack([np.asarray(layer.valid).sum(-1) for layer in cache.layers])  # [L, B, K]
    assert (counts.sum(-1) == 2 * np.array([26, 20])).all() and (counts.min(-1) < counts.max(-1)).any()
    assert [layer.slots for layer in cache.layers] == [52 + 4] * LAYERS
    assert kv.cache_bytes(cache).prompt == 2 * kv.cache_bytes(kv.prune(scored(), INNER["h2o"])).prompt
    small = kv.compact(cache)
    assert [layer.slots for layer in small.layers] == [counts[i].max() + 4 for i in range(LAYERS)]
    assert sum(kv.kept_counts(cache)[0].values()) == pytest.approx(counts[0].mean())


@pytest.mark.complete
def test_heads_share_a_budget_between_steps():
    params, tokens = model()
    prompt = kv.make_prompt(MODALITY)
    policy = kv.AdaKV(kv.H2O(budget=24, evict_every=4), most=1.5)
    found = kv.generate(DECODER, params, tokens, prompt, policy, max_new_tokens=9)  # 8 in the cache: just evicted
    for layer in found.state.cache.layers:
        counts = np.asarray(layer.valid).sum(-1)
        assert layer.slots == 36 + 4
        assert (counts.sum(-1) == 48).all() and counts.max() <= 36 and (counts >= int(0.2 * 24)).all()
        assert (np.asarray(layer.index).max(-1) == TOKENS + 7).all()


def test_the_largest_and_smallest_smoothing():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(2, 2, 50)).astype(np.float32)
    member = rng.random((2, 2, 50)) < np.array([1.0, 0.7])[:, None, None]
    whole, mean = (np.asarray(low(signal, member, energy=energy, roll_off=0.0)) for energy in (1.0, 0.0))
    for at in np.ndindex(2, 2):
        own = member[at]
        np.testing.assert_allclose(whole[at][own], signal[at][own], **FP32)
        np.testing.assert_allclose(mean[at][own], signal[at][own].mean(), **FP32)


@pytest.mark.parametrize("slots", quick_only([300, 20_000], (300,)))
def test_frequencies_are_those_of_a_row_of_any_length(slots):
    """At 20,000 the squares of the chirp are beyond what float32 or int32 hold."""
    rng = np.random.default_rng(1)
    lengths = np.array([slots, slots - 1, slots * 2 // 3, 1])
    signal = (rng.normal(size=(1, 4, slots)) ** 4).astype(np.float32)
    member = (np.arange(slots) >= (slots - lengths)[:, None])[None]
    found = np.asarray(low(signal, member, energy=0.7, roll_off=0.05))
    for head, length in enumerate(lengths):
        own = signal[0, head, slots - length :].astype(float)
        wanted = oracle.smoothed(own, mix=1.0)
        np.testing.assert_allclose(found[0, head, slots - length :], wanted, rtol=0, atol=1e-5 * own.max())


def test_output_norms_in_blocks():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 2, 150, 8)), rng.normal(size=(6, 8, 20))
    found = jax.jit(output_norms)(values.astype(np.float32), weights.astype(np.float32))
    for row, wanted in enumerate(values):
        np.testing.assert_allclose(found[row], oracle.output_norms(wanted, weights), **FP32)


def kivi(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scale and zero point of 4 bits (KIVI, section 3)."""
    zero = x.min(axis, keepdims=True)
    scale = (x.max(axis, keepdims=True) - zero) / 15
    return np.round((x - zero) / scale), scale, zero


@pytest.mark.parametrize("per_channel", [True, False])
def test_four_bits_are_kivis(per_channel):
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 6)).astype(np.float32)
    slots = QuantizedSlots.of(jnp.asarray(x), jnp.ones(x.shape[:3], bool), 8, per_channel=per_channel, bits=4)
    codes, scale, zero = kivi(x[:, :, :32].astype(float), 2 if per_channel else 3)
    np.testing.assert_allclose(slots.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(slots.zero, zero, rtol=1e-6)
    found = np.concatenate([np.asarray(slots.codes) & 15, np.asarray(slots.codes) >> 4], -1)
    assert slots.codes.dtype == np.uint8 and slots.codes.shape == (2, 3, 32, 3)
    decided = np.abs(np.abs((x[:, :, :32] - zero) / scale % 1) - 0.5) > 1e-4
    np.testing.assert_array_equal(found[decided], codes[decided])
    dense = np.asarray(slots.dense())
    np.testing.assert_allclose(dense[:, :, :32], found * scale + zero, **FP32)
    np.testing.assert_array_equal(dense[:, :, 32:], x[:, :, 32:])
    assert slots.stored_bytes == 2 * 3 * (32 * 3 + 2 * 4 * (6 if per_channel else 32))


def test_empty_slots_do_not_stretch_the_scales():
    x = np.random.default_rng(1).normal(size=(1, 1, 20, 4)).astype(np.float32)
    valid = np.arange(20)[None, None] < 15
    far = np.where(valid[..., None], x, 1e6)
    for per_channel in (True, False):
        own, others = (
            QuantizedSlots.of(jnp.asarray(y), jnp.asarray(valid), 0, per_channel=per_channel, bits=4) for y in (x, far)
        )
        np.testing.assert_array_equal(own.dense()[valid], others.dense()[valid])
        one = QuantizedSlots.of(jnp.full_like(x, 3.0), jnp.asarray(valid), 0, per_channel=per_channel, bits=4)
        np.testing.assert_array_equal(one.dense()[valid], 3.0)

"""VL-Cache against dense attention in NumPy: scores, chunks, and the shares of a calibration run."""

import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.tiny_dense import dense_run, distinct_tokens
from tests.tiers import quick_first
from tests.tolerances import FP32

DECODER, PARAMS, INPUTS, PROMPT = distinct_tokens()
QUERIES = kv.QuerySet(rows="after_media")


def scored(modality: np.ndarray, *cuts: int) -> kv.Scored:
    """The prompt with these modalities, in chunks."""
    edges, before = [0, *cuts, modality.shape[1]], None
    for start, end in zip(edges, edges[1:], strict=False):
        chunk = kv.make_prompt(modality[:, start:end])
        more = {"before": before, "complete": end == modality.shape[1]}
        ids = np.asarray(INPUTS)[:, start:end]
        _, before = kv.jitted.score(DECODER, PARAMS, ids, chunk, (kv.VLCache(),), **more)
    assert before is not None
    return before


@pytest.mark.parametrize("budget", quick_first([24, 0.5]))
def test_keeps_what_a_dense_run_says(budget):
    policy = kv.make_policy("vl_cache", budget=budget)
    _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy)
    slots = budget if isinstance(budget, int) else 32
    recent = round(0.1 * slots)
    after = 1 + int(np.flatnonzero(np.asarray(PROMPT.modality)[0])[-1])
    for layer, dense in zip(cache.layers, dense_run(PARAMS, INPUTS), strict=True):
        for head, scores in enumerate(dense.by_group[0, :, after:].sum(1)):
            scores[-recent:] = np.inf
            np.testing.assert_array_equal(layer.index[0, head], np.sort(np.argsort(-scores, kind="stable")[:slots]))


KINDS = {
    "text after media": np.repeat([0, 1, 2, 0, 1, 0], [4, 10, 20, 8, 10, 12]),
    "media last": np.repeat([0, 1, 2], [4, 30, 30]),
    "text alone": np.zeros(64, int),
}
COUNTED = {"text after media": slice(52, 64), "media last": slice(63, 64), "text alone": slice(0, 64)}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cuts", quick_first([(), (40,), (20, 54)], 3))  # in text between media, in media, after them
def test_rows_after_the_last_media_token_count(name, cuts):
    found = scored(KINDS[name][None], *cuts).attention_sums(QUERIES)
    for sums, dense in zip(found, dense_run(PARAMS, INPUTS), strict=True):
        np.testing.assert_allclose(sums, dense.by_group[:, :, COUNTED[name]].sum(2), **FP32)


@pytest.mark.parametrize("scans", quick_first([False, True]))
def test_shares_follow_the_density_of_attention(scans):
    decoder, *_ = distinct_tokens(scans=scans)
    params = PARAMS | {name: PARAMS[name] * np.array([1, 2])[:, None, None, None] for name in "qk"}  # sharp above
    params = {name: x.astype(np.float32) for name, x in params.items()}
    dense = []
    for layer in dense_run(params, INPUTS):
        rows = layer.attention[0, :, 60:]
        large = (rows >= 0.01 * rows.max(-1, keepdims=True)) & np.tri(64, dtype=bool)[60:]
        dense.append(large.sum((1, 2)) / (61 + 62 + 63 + 64))
    density = np.mean(dense, 1)
    assert density[0] > 1.5 * density[1]
    shares = kv.vl_cache_shares(decoder, params, INPUTS, PROMPT, budget=0.25)
    np.testing.assert_allclose(shares, density / density.mean(), atol=2e-6)
    kept = kv.PerLayer(kv.VLCache(budget=0.25), shares)
    assert kept.capacity(1000, 0) == round(0.25 * shares[0] * 1000)


def test_shares_stay_within_the_prompt():
    low, high = sorted(kv.vl_cache_shares(DECODER, PARAMS, INPUTS, PROMPT, budget=0.999))
    assert high * 0.999 <= 1.0 and low <= 1.0
    kv.PerLayer(kv.VLCache(budget=0.999), (low, high))
    with pytest.raises(ValueError, match="budget 0.0 is no fraction"):
        kv.vl_cache_shares(DECODER, PARAMS, INPUTS, PROMPT, budget=0.0)


def test_mistakes_are_one_sentence():
    with pytest.raises(ValueError, match="recent is a share of the budget from 0 to 1, not -0.1"):
        kv.VLCache(budget=0.5, recent=-0.1)

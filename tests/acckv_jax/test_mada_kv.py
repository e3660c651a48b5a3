"""MadaKV against NumPy, over layers: quotas, coverage, and what is carried on."""

import numpy as np
import pytest

import acckv_jax as kv
from tests.acckv_jax.tiny_dense import dense_run, distinct_tokens
from tests.tiers import quick_first

LAYERS = 4
DECODER, PARAMS, INPUTS, _ = distinct_tokens(layers=LAYERS)
MODALITY = np.repeat([0, 1, 2, 0], [6, 24, 28, 6])
PROMPT = kv.make_prompt(MODALITY[None])


def expected(policy: kv.MadaKV, slots: int) -> tuple[list[list[np.ndarray]], list[float]]:
    """Kept tokens by layer and head, and the budget of every layer."""
    kept, budgets, budget = [], [], float(slots)
    most = np.floor(policy.most * slots)
    for number, dense in enumerate(dense_run(PARAMS, INPUTS)):
        budget = min(budget, most)
        budgets.append(budget)
        heads = []
        for attention in dense.by_group[0, :, -policy.window_size :].sum(1):
            weight = {kind: attention[MODALITY == kind].sum() for kind in (0, 1, 2)}
            quota = {kind: int(weight[kind] / sum(weight.values()) * int(budget + 1e-3)) for kind in (1, 2)}
            quota[0] = int(budget + 1e-3) - quota[1] - quota[2]
            chosen = []
            for kind in (0, 1, 2):
                (own,) = np.nonzero(MODALITY == kind)
                ranked = own[np.argsort(-attention[own], kind="stable")]
                needed = 1 + np.sum(np.cumsum(attention[ranked]) < policy.coverage * weight[kind])
                needed = len(own) if policy.coverage == 1.0 else needed
                chosen += ranked[: min(quota[kind], needed)].tolist()
            heads.append(np.sort(chosen))
        kept.append(heads)
        used = np.mean([len(head) for head in heads])
        budget += (budget - used) / max(LAYERS - 1 - number, 1)  # phi - K / (L - l), K the mean over heads
    return kept, budgets


@pytest.mark.parametrize("scans", quick_first([False, True]))
@pytest.mark.parametrize(("coverage", "most"), quick_first([(0.9, 1.5), (0.6, 1.2), (0.6, 4.0), (1.0, 1.0)], 2))
def test_keeps_what_numpy_says(coverage, most, scans):
    policy = kv.make_policy("mada_kv", budget=20, window_size=8, coverage=coverage, most=most)
    kept, budgets = expected(policy, 20)
    decoder, *_ = distinct_tokens(layers=LAYERS, scans=scans)
    _, cache = kv.jitted.prefill(decoder, PARAMS, INPUTS, PROMPT, policy)
    for layer, heads in zip(cache.layers, kept, strict=True):
        assert layer.slots == min(64, int(most * 20))
        for head, tokens in enumerate(heads):
            np.testing.assert_array_equal(layer.index[0, head][layer.valid[0, head]], tokens)
    sizes = [np.mean([len(head) for head in heads]) for heads in kept]
    assert sum(sizes) <= LAYERS * 20
    if coverage < 1.0:
        assert budgets[-1] > 20 and budgets == sorted(budgets)


def test_protected_tokens_count_and_stay():
    policy = kv.Protected(kv.MadaKV(budget=20, window_size=8), first=3, last=4)
    _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy)
    for layer in cache.layers:
        for head in range(2):
            assert {0, 1, 2, 60, 61, 62, 63} <= set(np.asarray(layer.index)[0, head][layer.valid[0, head]].tolist())
        assert (layer.valid.sum(-1) <= 30).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"coverage": 0.0}, "coverage is a share of attention"),
        ({"most": 0.5}, "most is a multiple of the budget, at least 1"),
    ],
)
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kv.MadaKV(budget=0.5, **options)

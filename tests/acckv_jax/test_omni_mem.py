"""OmniMem against NumPy: novelty, the split of the budget, and the shares of a calibration run."""

import jax
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.policies.omni_mem import neighbour_similarity
from tests.acckv_jax.tiny_dense import Layer, dense_run, distinct_tokens
from tests.oracles.attention_numpy import unit
from tests.tiers import quick_first

DECODER, PARAMS, INPUTS, PROMPT = distinct_tokens()
MODALITY = np.asarray(PROMPT.modality)[0]
TEXT, VIDEO, AUDIO = (MODALITY == kind for kind in (0, 1, 2))


def measured(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Similarity to neighbours and attention, [T] each."""
    directions = unit(layer.x[0])
    between = (directions[1:] * directions[:-1]).sum(-1)
    return (np.append(1.0, between) + np.append(between, 1.0)) / 2, layer.attention[0].sum(1).mean(0)


def compressibility(similarity: np.ndarray, attention: np.ndarray) -> float:
    share = attention / attention.sum()
    return -(share * np.log(share)).sum() / np.log(len(share)) * (1 - similarity.mean())


def expected(layer: Layer, slots: int, prior: float) -> np.ndarray:
    similarity, attention = measured(layer)
    score = np.sqrt(1 - similarity) * attention**0.02
    video, audio = (compressibility(similarity[kind], attention[kind]) for kind in (VIDEO, AUDIO))
    left = slots - TEXT.sum()
    shown = round(left * video * prior / (video * prior + audio))
    shown = min(max(shown, left - AUDIO.sum()), VIDEO.sum())
    kept = [np.flatnonzero(TEXT)]
    for kind, number in ((VIDEO, shown), (AUDIO, left - shown)):
        own = np.flatnonzero(kind)
        kept.append(own[np.argsort(-score[own], kind="stable")[:number]])
    return np.sort(np.concatenate(kept))


@pytest.mark.parametrize("scans", quick_first([False, True]))
@pytest.mark.parametrize(("budget", "prior"), quick_first([(24, 5.0), (24, 0.2), (60, 5.0), (9, 5.0)], 2))
def test_keeps_what_numpy_says(budget, prior, scans):
    decoder, *_ = distinct_tokens(scans=scans)
    policy = kv.make_policy("omni_mem", budget=budget, video_prior=prior)
    policy.check(kv.count_tokens(PROMPT))
    _, cache = kv.jitted.prefill(decoder, PARAMS, INPUTS, PROMPT, policy)
    for layer, dense in zip(cache.layers, dense_run(PARAMS, INPUTS), strict=True):
        for head in range(2):
            np.testing.assert_array_equal(layer.index[0, head], expected(dense, budget, prior))


def test_neighbours_are_tokens_whatever_padding_lies_between():
    rng = np.random.default_rng(0)
    x, valid = rng.standard_normal((3, 40, 5)).astype(np.float32), rng.random((3, 40)) < 0.6
    found = jax.jit(neighbour_similarity)(x, valid)
    for row in range(3):
        directions = unit(x[row, valid[row]])
        between = (directions[1:] * directions[:-1]).sum(-1)
        want = (np.append(1.0, between) + np.append(between, 1.0)) / 2
        np.testing.assert_allclose(found[row][valid[row]], want, atol=1e-6)


@pytest.mark.parametrize("scans", quick_first([False, True]))
def test_shares_are_a_softmax_over_layers(scans):
    decoder, *_ = distinct_tokens(scans=scans)
    found = kv.omni_mem_shares(decoder, PARAMS, INPUTS, PROMPT, budget=0.25, temperature=0.5)
    media = VIDEO | AUDIO
    layers = [[x[media] for x in measured(layer)] for layer in dense_run(PARAMS, INPUTS)]
    weight = np.exp(np.array([compressibility(*layer) for layer in layers]) / 0.5)
    np.testing.assert_allclose(found, 2 * weight / weight.sum(), rtol=2e-4)
    assert max(found) > 1.02
    with pytest.raises(ValueError, match="temperature must be above 0"):
        kv.omni_mem_shares(decoder, PARAMS, INPUTS, PROMPT, budget=0.25, temperature=0.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"exponent": -1.0}, "exponent must be at least 0"), ({"video_prior": 0.0}, "video_prior is a weight above 0")],
)
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kv.OmniMem(budget=0.5, **options)


def test_a_budget_that_text_does_not_fit_is_told():
    with pytest.raises(ValueError, match="text, which is kept whole, needs 8"):
        kv.OmniMem(budget=7).check(kv.count_tokens(PROMPT))

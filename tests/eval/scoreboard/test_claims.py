"""Verdicts on made-up answers, and the weights of a real prompt."""

import numpy as np

import acckv_jax as kv
from eval.scoreboard.claims import CROSS, claims_of, grows_with_depth, video_weights
from eval.scoreboard.table import Answers
from models.interface import EmbeddedPrompt
from tests.eval.scoreboard.test_table import row


def test_weights_of_layers_are_those_that_acckv_reads(small_model):
    tokens = np.random.default_rng(0).normal(size=(40, small_model.decoder_config.hidden_size)).astype(np.float32)
    modality = np.repeat(np.array([0, 1, 2, 0], np.int8), 10)
    prompt = EmbeddedPrompt.of(tokens, modality)
    weights, found = video_weights(small_model, prompt), []

    class Recording(kv.AccKV):
        def _weights(self, layer, sums):
            share = super()._weights(layer, sums)
            found.append(float(share[0, 0]))
            return share

    _, scored = kv.score(
        small_model.decoder,
        small_model.params,
        tokens[None],
        kv.make_prompt(modality[None]),
        (Recording(budget=0.9),),
    )
    policy = Recording(budget=0.9)
    for number, (layer, sums) in enumerate(
        zip(scored.cache.layers, scored.attention_sums(policy.mass_queries), strict=True)
    ):
        policy._weights(layer, sums)
        np.testing.assert_allclose(weights[number], found[-1], rtol=1e-4)
    assert ((0 < weights) & (weights < 1)).all()


def test_growth_with_depth():
    rising, falling = np.linspace(0.1, 0.9, 8), np.linspace(0.9, 0.1, 8)
    holds = grows_with_depth({"video": [("0", rising), ("1", rising)], "audio": [("0", rising), ("1", rising)]})
    assert holds.verdict == "holds" and [one.estimate.value for one in holds.numbers] == [1, 1]
    fails = grows_with_depth({"video": [("0", rising), ("1", rising)], "audio": [("0", falling), ("1", falling)]})
    assert fails.verdict == "fails" and fails.as_json()["numbers"][1]["estimate"]["value"] == -1
    assert grows_with_depth({"video": [("0", rising)]}).verdict == "open"  # a single clip shows nothing


def answers(scores):
    """Twenty clips with one question; scores by policy."""
    rows = [row(i, "full", 1.0, 1, 1.0) for i in range(20)]
    rows += [row(i, p, b, 1, float(s(i))) for i in range(20) for p, s in scores.items() for b in (0.2, 0.1)]
    return Answers.of("clips", "exact_match", rows)


def test_verdicts():
    scores = {
        "acckv": lambda i: i % 10 > 0,
        CROSS: lambda i: 0,
        "acckv:merge=none": lambda i: i % 10 > 0,
        "acckv:gate=none": lambda i: 1,
        "h2o": lambda i: i % 2,
        "snapkv": lambda i: 1,
    }
    found = {claim.number: claim for claim in claims_of([answers(scores)])}
    assert found.keys() == {"ii", "iv", "v"}
    assert found["ii"].verdict == "holds"
    gate = [one for one in found["iv"].numbers if "gate" in one.about]
    assert len(gate) == 2 and {one.verdict for one in gate} == {"open"}  # two clips of twenty
    beaten = {one.about.split(":")[0]: one.verdict for one in found["v"].numbers}
    assert beaten["h2o"] == "holds" and beaten["snapkv"] == "open"
    assert found["v"].verdict == "open"
    worse = claims_of([answers(scores | {"acckv": lambda i: i % 3 == 0})])
    assert {claim.number: claim.verdict for claim in worse}["v"] == "fails"

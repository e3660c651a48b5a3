"""Policies on the thinker: rotary positions after pruning, through decoding and a second question."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import acckv_jax as kv
from models.batching import padded
from models.interface import EmbeddedPrompt
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.prompt import expand
from tests.acckv_jax.contract_cases import CONTRACT, allowed
from tests.models.conversations import EQUAL_LAYERS, FULL, MOVED, STEPS, converse, masked_alike, read, talk
from tests.models.qwen2_5_omni.thinkers import embedded, loaded_thinker, random_case, reference_thinker, theirs
from tests.tiers import quick_only
from tests.tolerances import LOGITS

LENGTH, QUESTION = 320, 8
CONFIG = ThinkerConfig.tiny()
CONFIG = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_hidden_layers=2))
SECOND = [7, 3, 11, 5, 2]


@pytest.fixture(scope="module")
def reference():
    return reference_thinker(CONFIG, 0)


@pytest.fixture(scope="module")
def ours(reference, tmp_path_factory):
    return loaded_thinker(CONFIG, reference, tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="module")
def cases():
    """One row per layout; the first one's text starts below the video's highest positions."""
    found = []
    for seed in itertools.count():
        case = random_case(np.random.default_rng(seed), CONFIG, interleaved=not found)
        tokens = expand(case.parts, CONFIG)
        if found or tokens.next < tokens.positions.max():
            found.append(case)
        if len(found) == 2:
            return found


def run(ours, batch, second, policy):
    """The whole conversation."""
    return converse(ours.params["decoder"], batch, second, decoder=ours.decoder, policy=policy)


def conversation(ours, cases):
    chunks = [embedded(ours, case)[1] for case in cases]
    second = [
        EmbeddedPrompt.of(np.array(SECOND), np.zeros(len(SECOND), int)),
        EmbeddedPrompt.of(np.array(SECOND[:3]), np.zeros(3, int)),
    ]
    return chunks, padded(chunks, LENGTH), padded(second, QUESTION)


def test_two_questions_equal_transformers(ours, reference, cases):
    """Nothing pruned: both answers are those of transformers, which reads the whole conversation anew."""
    _, batch, second = conversation(ours, cases)
    found = run(ours, batch, second, FULL)
    for row, case in enumerate(cases):
        answer = np.asarray(found["first"][0])[:, row].tolist()
        question = SECOND[: int(second.prompt.length[row])]
        whole = dataclasses.replace(case, parts=[*case.parts, answer, question])
        tokens = expand(whole.parts, CONFIG)
        with torch.no_grad():
            out = reference.generate(
                **theirs(whole, tokens, CONFIG),
                max_new_tokens=STEPS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert np.asarray(found["later"][0])[:, row].tolist() == out.sequences[0, len(tokens) :].tolist()
        np.testing.assert_allclose(found["later"][1][:-1, row], torch.cat(out.logits).numpy()[1:], **LOGITS)


@pytest.mark.parametrize("name", quick_only(EQUAL_LAYERS, ("h2o_every_4", "snapkv")))
def test_positions_go_on_from_the_uncompressed_prompt(name, ours, cases):
    budget = 1.0 if name == "full" else 0.8 if name.startswith("protected") else 0.5
    policy = CONTRACT[name].with_budget(budget)
    chunks, batch, second = conversation(ours, cases)
    policy.check(kv.count_tokens(batch.prompt))
    found = run(ours, batch, second, policy)
    lengths = np.array([len(chunk) for chunk in chunks])
    deltas = np.array([chunk.delta for chunk in chunks])
    turns = np.asarray(second.prompt.length)
    for stage, more in (("pruned", 0), ("answered", STEPS), ("asked", STEPS + turns), ("ended", 2 * STEPS + turns)):
        cache = found[stage]
        np.testing.assert_array_equal(cache.length, lengths + more)
        np.testing.assert_array_equal(cache.delta, deltas)
        assert np.asarray([layer.finite for layer in cache.layers]).all()
    for number, layer in enumerate(found["pruned"].layers):
        assert (np.asarray(layer.valid.sum(-1).mean(-1)) <= allowed(policy, lengths, number)).all()


@pytest.mark.parametrize("name", quick_only(MOVED))
def test_pruning_equals_masking(name, ours, cases):
    """Answers after pruning are those of the whole cache with the dropped slots masked."""
    policy = dataclasses.replace(CONTRACT[name], budget=0.5, evict_every=0)
    _, batch, second = conversation(ours, cases)
    found = run(ours, batch, second, policy)
    logits, whole = read(ours.params["decoder"], batch, decoder=ours.decoder, policy=FULL)
    masked = masked_alike(whole, found["pruned"])
    expected = talk(ours.params["decoder"], logits, masked, second, decoder=ours.decoder, policy=FULL)
    for answer in ("first", "later"):
        np.testing.assert_array_equal(found[answer][0], expected[answer][0])
        np.testing.assert_allclose(found[answer][1], expected[answer][1], **LOGITS)

"""Policies on VideoLLaMA2.1-AV: positions after pruning, through decoding and a second question."""

import dataclasses

import numpy as np
import pytest
import torch

import acckv_jax as kv
from models.batching import padded
from models.decoder import Decoder
from models.interface import EmbeddedPrompt
from models.layers.init import FastRngs, abstract_params
from models.over_decoder import DecoderStep
from tests.acckv_jax.contract_cases import CONTRACT, allowed
from tests.models.conversations import EQUAL_LAYERS, FULL, MOVED, STEPS, converse, masked_alike, read, talk
from tests.models.hf_decoder import hf_model
from tests.models.videollama2.cases import MODEL
from tests.models.videollama2.test_model import inputs
from tests.prompts import embeddings
from tests.tiers import quick_only
from tests.tolerances import LOGITS

CASE = 0
LENGTH, QUESTION = 64, 8
SECOND = [7, 3, 11, 5, 2]


@pytest.fixture(scope="module")
def talks():
    """Parameters, decoder, and two conversations: the second one's first question is shorter."""
    case = MODEL[CASE]
    config, params, embedded = inputs(CASE)
    embedded = np.asarray(embedded[0])
    audio = (case.frames // 16) * (case.bands // 16)
    counts = [case.before, config.video_tokens, audio, case.after]
    kinds = [kv.Modality.TEXT, kv.Modality.VIDEO, kv.Modality.AUDIO, kv.Modality.TEXT]
    long = EmbeddedPrompt.of(embedded, np.repeat(kinds, counts))
    chunks = [long, long.split(len(long) - 3)[0]]
    second = [EmbeddedPrompt.of(np.array(part), np.zeros(len(part), int)) for part in (SECOND, SECOND[:3])]
    step = DecoderStep(abstract_params(lambda: Decoder(config.decoder, rngs=FastRngs(0)))[0])
    decoder = kv.Decoder(step, config.decoder.num_hidden_layers, scans=True)
    return config.decoder, params["decoder"], decoder, chunks, padded(chunks, LENGTH), padded(second, QUESTION)


def test_two_questions_equal_transformers(talks):
    """Nothing pruned: both answers are those of transformers, which reads the whole conversation anew."""
    config, params, decoder, chunks, batch, second = talks
    found = converse(params, batch, second, decoder=decoder, policy=FULL)
    reference = hf_model(config, params)
    table = np.asarray(params["tokens"]["embedding"])
    for row, chunk in enumerate(chunks):
        answer, later = (np.asarray(found[part][0])[:, row] for part in ("first", "later"))
        question = SECOND[: int(second.prompt.length[row])]
        texts = [table[answer], table[question], table[later]]
        with torch.no_grad():
            whole = torch.from_numpy(np.concatenate([embeddings(chunk), *texts])[None])
            logits = reference(inputs_embeds=whole).logits[0].numpy()
        start = len(chunk)
        np.testing.assert_array_equal(logits[start - 1 : start + STEPS - 1].argmax(-1), answer)
        np.testing.assert_allclose(found["first"][1][:, row], logits[start : start + STEPS], **LOGITS)
        start += STEPS + len(question)
        np.testing.assert_array_equal(logits[start - 1 : start + STEPS - 1].argmax(-1), later)
        np.testing.assert_allclose(found["later"][1][:, row], logits[start : start + STEPS], **LOGITS)


@pytest.mark.parametrize("name", quick_only(EQUAL_LAYERS, ("acckv_plus",)))
def test_positions_go_on_from_the_uncompressed_prompt(name, talks):
    """Where slots are only moved, answers moreover are those of the whole cache with the dropped slots masked."""
    config, params, decoder, chunks, batch, second = talks
    policy = CONTRACT[name].with_budget(1.0 if name == "full" else 0.5)
    if name in MOVED:
        policy = dataclasses.replace(policy, evict_every=0)
    policy.check(kv.count_tokens(batch.prompt))
    found = converse(params, batch, second, decoder=decoder, policy=policy)
    lengths, turns = np.array([len(chunk) for chunk in chunks]), np.asarray(second.prompt.length)
    for stage, more in (("pruned", 0), ("answered", STEPS), ("asked", STEPS + turns), ("ended", 2 * STEPS + turns)):
        np.testing.assert_array_equal(found[stage].length, lengths + more)
        assert np.asarray([layer.finite for layer in found[stage].layers]).all()
    for number, layer in enumerate(found["pruned"].layers):
        assert (np.asarray(layer.valid.sum(-1).mean(-1)) <= allowed(policy, lengths, number)).all()
    if name in MOVED:
        logits, whole = read(params, batch, decoder=decoder, policy=FULL)
        expected = talk(params, logits, masked_alike(whole, found["pruned"]), second, decoder=decoder, policy=FULL)
        for answer in ("first", "later"):
            np.testing.assert_array_equal(found[answer][0], expected[answer][0])
            np.testing.assert_allclose(found[answer][1], expected[answer][1], **LOGITS)

"""The second pass of KVzip: clips are described by the model itself, texts are repeated, and answers follow."""

import numpy as np
import pytest

import acckv_jax as kv
import models
from models import answering, retelling
from models.batching import in_bucket
from models.smolav.params import FOLDER
from tests.eval.tasks.letters import LetterModel
from tests.small_smolav import small_smolav

CLIP = FOLDER / "demo" / "demo.mp4"
POLICY = kv.KVzip(budget=0.2)
(NAME,) = POLICY.queries


@pytest.fixture(scope="module")
def model():
    return small_smolav()


def test_a_text_is_repeated():
    model = LetterModel()
    prefix = model.encode_question("a bad cab had a deaf cafe")
    arguments = in_bucket(prefix).arguments()
    _, scored = kv.jitted.score(model.decoder, model.params, **arguments, policies=(POLICY,), complete=False)
    found = retelling.retold(model, prefix, len(prefix), scored, (kv.Knorm(), POLICY))
    said = [*model.encode_question(retelling.REPEAT).buffers[0].tolist(), *prefix.buffers[0].tolist()]
    again = kv.make_prompt(np.zeros((1, len(said)), int))
    probed = kv.jitted.probe(model.decoder, model.params, np.array([said]), again, scored, (POLICY,))
    for ours, theirs in zip(found.attention_sums(NAME), probed.attention_sums(NAME), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_clip_is_described_and_transcribed(model):
    """By the words that the model answers with, and each of these answers attends to the clip alone."""
    clip = models.encode(model, CLIP)
    prefill = answering.prefill_clip(model, clip, [POLICY])
    assert prefill.serves(POLICY) and not answering.prefill_clip(model, clip, [kv.Knorm()]).serves(POLICY)
    _, scored = kv.jitted.score(
        model.decoder, model.params, **in_bucket(clip.prompt).arguments(), policies=(POLICY,), complete=False
    )
    for instruction in (retelling.DESCRIBE, retelling.TRANSCRIBE):
        said = models.answer(model, clip, instruction, policy=kv.Full(), max_new_tokens=retelling.LONGEST).token_ids
        text = model.encode_question(instruction).then(model.embed_text(said))
        chunk = {name: x for name, x in in_bucket(text).arguments().items() if name in ("inputs", "prompt")}
        scored = kv.jitted.probe(model.decoder, model.params, **chunk, scored=scored, policies=(POLICY,))
    for ours, theirs in zip(prefill.scored.attention_sums(NAME), scored.attention_sums(NAME), strict=True):
        np.testing.assert_allclose(ours[..., : len(clip.prompt)], theirs[..., : len(clip.prompt)], rtol=1e-4, atol=1e-7)


def test_a_question_stays_and_shares_the_second_pass(model, monkeypatch):
    told = []
    monkeypatch.setattr(answering, "retold", lambda *given: told.append(given) or retelling.retold(*given))
    clip = models.encode(model, CLIP)
    for question in ("What is shown second?", "Which number is spoken last?"):
        found = models.answer(model, clip, question, policy=POLICY, max_new_tokens=6)
        asked = len(model.encode_question(question))
        for layer in found.state.cache.layers:
            index, valid = (np.asarray(x)[0, 0] for x in (layer.index, layer.valid))
            prompt = index[valid & (index < len(clip.prompt) + asked)]
            assert set(range(len(clip.prompt), len(clip.prompt) + asked)) <= set(prompt.tolist())
            assert len(prompt) == round(0.2 * (len(clip.prompt) + asked))
    assert len(told) == 1

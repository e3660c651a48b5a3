"""What policies keep of a prompt, against their caches and sets of tokens."""

import numpy as np
import pytest

import acckv_jax as kv
from eval.policies import BudgetError
from eval.scoreboard.kept import Kept, kept_by, overlap
from models.media.clip_writer import write_clip


@pytest.fixture(scope="module")
def prompt(small_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(path, frames, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    prefix = small_model.encode_media(small_model.load_media(path), small_model.layouts[0])
    return prefix, small_model.encode_question("What is shown?")


def test_kept_tokens(small_model, prompt):
    policies = {
        "full": kv.Full(),
        "recent": kv.StreamingLLM(budget=20, sinks=4),
        "merging": kv.AccKV(budget=0.5, gate="none"),
        "kvzip": kv.KVzip(budget=0.5),
    }
    found = dict(kept_by(small_model, *prompt, policies))
    modality = prompt[0].then(prompt[1]).modality[:-1]
    length, decoder = len(modality), small_model.decoder_config
    shape = (decoder.num_hidden_layers, decoder.num_key_value_heads, length)
    assert all(one.tokens.shape == shape for one in found.values())
    assert (found["full"].tokens == 1).all() and (found["full"].by_layer == 1).all()
    assert (found["recent"].tokens[..., :4] == 1).all() and (found["recent"].tokens[..., -16:] == 1).all()
    assert found["recent"].tokens.sum() == shape[0] * shape[1] * 20
    merging = found["merging"].tokens
    assert ((merging > 0).sum(-1) == round(length / 2)).all()
    np.testing.assert_allclose(merging.sum(-1), length, rtol=1e-6)  # nothing is lost, tokens are merged
    assert (merging > 1).any()
    assert (found["full"].modality == modality).all()
    # What came after the second pass stays.
    assert (found["kvzip"].tokens[..., -len(prompt[1]) + 1 :] == 1).all()
    assert ((found["kvzip"].tokens > 0).sum(-1) == round(length / 2)).all()


def test_a_random_choice_of_one_modality(small_model, prompt):
    read = prompt[0].then(prompt[1]).modality[:-1]
    text, video = (int((read == kind).sum()) for kind in (kv.Modality.TEXT, kv.Modality.VIDEO))
    few, all_of_it = kv.Random(budget=text + 2, only="video"), kv.Random(budget=text + video, only="video")
    found = dict(kept_by(small_model, *prompt, {"few": few, "all": all_of_it}))
    assert (found["few"].tokens[..., read == kv.Modality.VIDEO].sum(-1) == 2).all()
    assert (found["all"].tokens[..., read == kv.Modality.VIDEO] == 1).all()
    for kept in found.values():
        assert (kept.tokens[..., read == kv.Modality.AUDIO] == 0).all()
        assert (kept.tokens[..., read == kv.Modality.TEXT] == 1).all()


def test_a_budget_that_is_too_small(small_model, prompt):
    with pytest.raises(BudgetError, match="Policy acckv: .*budget 1 "):
        next(kept_by(small_model, *prompt, {"acckv": kv.AccKV(budget=1)}))


def test_overlap():
    modality = np.array([0, 1, 1, 1, 2], np.int8)

    def kept(*tokens):
        mask = np.zeros((1, 1, 5), np.float32)
        mask[..., list(tokens)] = 1
        return Kept(mask, modality)

    found = overlap([kept(0, 1, 2), kept(0, 2, 3), kept(1, 2), kept(0)])
    expected = [[1, 1 / 3, 1, 0], [1 / 3, 1, 1 / 3, 0], [1, 1 / 3, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(found, expected)

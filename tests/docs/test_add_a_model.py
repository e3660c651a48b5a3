"""docs/add_a_model.md: its model answers, and has the methods that the programs ask for."""

import dataclasses

import jax
import numpy as np
import pytest

import acckv_jax as kv
from models.errors import UserError
from models.hf.decoder import decoder_tensors
from models.hf.export import save_params
from models.hf.tensors import linear
from models.interface import AVModel
from models.media.clip import Media
from tests.docs.pages import run


@pytest.fixture(scope="module")
def page():
    return run("docs/add_a_model.md", {})


def test_it_has_all_that_the_programs_ask_for(page):
    asked = {name for name in vars(AVModel) if not name.startswith("_")}
    assert asked and [name for name in sorted(asked) if not hasattr(page["model"], name)] == []


def test_text_is_kept_and_video_is_pruned(page):
    prompt, (first, *_) = page["prompt"], page["result"].kept
    assert prompt.count(kv.Modality.VIDEO) == 40 and first["text"] == prompt.count(kv.Modality.TEXT)
    assert 0 < first["video"] < 40
    assert page["result"].tokens.shape == (1, page["result"].num_tokens[0])


def test_other_frames_are_other_embeddings(page):
    model, clip = page["model"], page["clip"]
    other = model.encode_media(Media(255 - clip.frames, None), "video")
    ours, theirs = (np.asarray(page["in_bucket"](p).inputs)[0, 1:41] for p in (page["prompt"], other))
    assert not np.allclose(ours, theirs)
    with pytest.raises(UserError, match="no pictures"):
        model.encode_media(Media(None, np.zeros(16_000, np.float32)), "video")


def test_a_checkpoint_is_read_again(page, tmp_path):
    model, config = page["model"], page["config"]
    names = decoder_tensors(config, into=("decoder",)) | linear("colors", ("colors",))
    save_params(tmp_path / "tiny", model.all_params, names, dataclasses.asdict(config) | {"hidden_act": "silu"})
    again = page["load"](tmp_path / "tiny")
    assert again.decoder_config == config
    jax.tree.map(np.testing.assert_array_equal, again.all_params, model.all_params)
    prompt = again.encode_media(page["clip"], "video")
    np.testing.assert_array_equal(
        page["in_bucket"](prompt).inputs[0, :40], page["in_bucket"](page["prompt"]).inputs[0, :40]
    )

    (tmp_path / "tiny" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="hidden_size"):
        page["load"](tmp_path / "tiny")

"""docs/add_a_model.md: its model answers, and has the methods that the programs ask for."""

import jax
import numpy as np
import pytest

import acckv_jax as kv
from models.errors import UserError
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


def test_every_parameter_has_a_tensor(page):
    leaves, _ = jax.tree_util.tree_flatten_with_path(page["params"])
    parameters = {tuple(key.key for key in path) for path, _ in leaves}
    assert {tensor.path for tensor in page["tensors"].values()} == parameters

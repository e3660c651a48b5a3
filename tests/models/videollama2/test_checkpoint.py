"""Checkpoint folders: as published, in one file, incomplete; and from a clip to the decoder's input."""

import dataclasses

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from acckv_jax import Modality
from models.errors import UserError
from models.hf.config import reading
from models.hf.export import save_params
from models.media.clip import Media
from models.media.clip_writer import write_clip
from models.registry import CHECKPOINTS, checkpoint_folder, open_source
from models.smolav.params import FOLDER as SMOLAV
from models.videollama2.model import VideoLLaMA2Model
from models.videollama2.params import open_videollama2
from models.videollama2.preprocess import frame_numbers
from tests.models.hub.caches import write_cache
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer
from tests.models.videollama2.cases import MODEL, model_config
from tests.models.videollama2.checkpoints import BIAS, write_checkpoint, write_config
from tests.models.videollama2.parameters import seeded_params
from tests.prompts import embeddings

CASE = MODEL[0]
DEMO = SMOLAV / "demo" / "demo.mp4"
VOCABULARY = 151_680


def load(folder):
    with reading(folder) as section:
        _, source = open_videollama2(folder, section)
    return source, source.load(jnp.float32)[1]


def assert_equal(ours, expected):
    ours, expected = flatten_dict(ours), flatten_dict(expected)
    assert ours.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=str(path))


@pytest.mark.parametrize("bins", [True, False])
def test_every_tensor_is_read_and_written(tmp_path, bins):
    (folder := tmp_path / "in").mkdir()
    write_checkpoint(folder, CASE, bins=bins)
    source, params = load(folder)
    assert_equal(params, seeded_params(CASE.seed, source.tensors, params))
    save_params(tmp_path / "out", params, source.tensors, model_config(CASE), max_shard_bytes=50_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert_equal(load(tmp_path / "out")[1], params)


def test_a_name_of_the_hub_is_loaded_from_its_cache(tmp_path, monkeypatch):
    """With the parts that lie beside the safetensors; one that the cache lacks is named."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "theirs").mkdir()
    write_checkpoint(folder, CASE, bins=True)
    snapshot = write_cache(tmp_path / "cache", "DAMO-NLP-SG/VideoLLaMA2.1-7B-AV", folder)
    found = checkpoint_folder("DAMO-NLP-SG/VideoLLaMA2.1-7B-AV", CHECKPOINTS)
    assert found == snapshot
    assert open_source(found).checkpoint.tensors.keys() == open_source(folder).checkpoint.tensors.keys()
    (snapshot / "audio_tower.bin").unlink()
    with pytest.raises(UserError, match="lacks audio_tower.bin"):
        open_source(checkpoint_folder("DAMO-NLP-SG/VideoLLaMA2.1-7B-AV", CHECKPOINTS))


def test_tied_embeddings_have_no_head(tmp_path):
    case = next(case for case in MODEL if case.tied)
    write_checkpoint(tmp_path, case, bins=True)
    assert "head" not in load(tmp_path)[1]["decoder"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": None, "hidden_size_a": None}, "hidden_size_a is missing; num_frames is missing"),
        ({"mm_projector_type": "stc_connector"}, "mm_projector_type is 'stc_connector', but only"),
        ({"mm_vision_tower_config": None}, "mm_vision_tower 'siglip-tiny' is not known"),
        ({"mm_projector_a_type": None}, "mm_projector_a_type is missing"),
        ({"num_frames": -4}, "num_frames must be at least 1, not -4"),
        ({"mm_vision_tower_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu', but only 'gelu_pytorch_tanh' is"),
        ({"mm_vision_tower_config": {"vision_use_head": False}}, "vision_use_head is False, but only True is"),
        ({"mm_vision_tower_config": {"num_attention_heads": 0}}, "num_attention_heads must be at least 1, not 0"),
        ({"mm_audio_tower_config": {"conv_pos_groups": 0}}, "conv_pos_groups must be at least 1, not 0"),
        ({"mm_hidden_size": 17}, "mm_hidden_size is 17, but what it describes is 16 wide"),
        ({"num_frames": 1}, "must all be at least 2"),
        ({"mm_vision_select_layer": -5}, "mm_vision_select_layer -5 does not exist: the tower has 3 layers"),
        ({"mm_audio_tower_config": {}}, "mm_audio_tower_config.embed_dim is missing"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path, changes, message):
    write_checkpoint(tmp_path, CASE, bins=False)
    write_config(tmp_path, model_config(CASE) | changes)
    with pytest.raises(UserError, match=message):
        VideoLLaMA2Model.load(tmp_path)


def test_missing_and_strange_tensors(tmp_path):
    write_checkpoint(tmp_path, CASE, bins=True)
    torch.save({BIAS.format(0): torch.zeros(3, 3), "model.strange": torch.zeros(1)}, tmp_path / "audio_tower.bin")
    with pytest.raises(UserError, match=r"1 unknown: model.strange; \d+ missing: .* 1 of a wrong shape"):
        load(tmp_path)


def test_a_part_that_was_not_copied(tmp_path):
    write_checkpoint(tmp_path, CASE, bins=True)
    (tmp_path / "mm_projector_a.bin").unlink()
    with pytest.raises(UserError, match=r"lacks mm_projector_a.bin, and the tensors model.mm_projector_a.\* are"):
        load(tmp_path)


def test_layers_share_the_bias_of_the_first(tmp_path):
    write_checkpoint(tmp_path, CASE, bins=True)
    tensors = torch.load(tmp_path / "audio_tower.bin")
    tensors[BIAS.format(2)] = tensors[BIAS.format(2)] + 1
    torch.save(tensors, tmp_path / "audio_tower.bin")
    with pytest.raises(
        UserError, match=r"1 different from the tensor .*: model.*layers.2.*bias.weight \(model.*layers.0"
    ):
        load(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videollama2")
    write_checkpoint(folder, CASE, bins=True, vocab_size=VOCABULARY)
    write_tokenizer(folder, form="vocab.json")
    return VideoLLaMA2Model.load(folder)


def test_clip_to_prompt(model):
    media = model.load_media(DEMO)
    assert media.frames.shape == (CASE.num_frames, 20, 20, 3)
    chunk = model.encode_media(media, "blocks")
    audio = 187 * 8
    before = len(chunk) - model.config.video_tokens - audio
    kinds = [Modality.TEXT] * before + [Modality.VIDEO] * model.config.video_tokens + [Modality.AUDIO] * audio
    np.testing.assert_array_equal(chunk.modality, kinds)
    question = model.encode_question("What plays?")
    whole = chunk.then(question)
    assert embeddings(whole).shape == (len(chunk) + len(question), 32) and np.isfinite(embeddings(whole)).all()
    seen = model.encode_media(dataclasses.replace(media, audio=None), "blocks")
    np.testing.assert_array_equal(embeddings(seen), embeddings(chunk)[: len(seen)])
    heard = model.encode_media(dataclasses.replace(media, frames=None), "blocks")
    assert heard.count(Modality.VIDEO) == 0 and heard.count(Modality.AUDIO) == audio


@pytest.mark.parametrize(("frames", "fps"), [(40, 25), (41, 30), (3, 10), (1, 5)])
def test_frames_are_those_with_the_right_numbers(model, tmp_path, frames, fps):
    greys = 6 * np.arange(frames, dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", np.broadcast_to(greys[:, None, None, None], (frames, 32, 48, 3)), fps=fps)
    media = model.load_media(tmp_path / "clip.mp4")
    assert media.audio is None
    shown = media.frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, greys[frame_numbers(frames, CASE.num_frames)], atol=2.5)
    assert len(model.encode_media(media, "blocks")) > model.config.video_tokens


def test_a_picture_is_a_video_in_which_nothing_moves(model):
    picture = model.load_media(SMOLAV / "demo" / "photos" / "cat.jpg")
    assert picture.frames.shape == (1, 20, 20, 3)
    still = dataclasses.replace(picture, frames=np.repeat(picture.frames, CASE.num_frames, axis=0))
    seen, repeated = (model.encode_media(media, "blocks") for media in (picture, still))
    np.testing.assert_array_equal(embeddings(seen), embeddings(repeated))


def test_media_that_cannot_be_laid_out(model):
    with pytest.raises(UserError, match="has no layout 'interleaved'"):
        model.encode_media(model.load_media(DEMO), "interleaved")
    with pytest.raises(UserError, match="reads one clip, not 2"):
        model.encode_media([Media(None, None)] * 2, "blocks")
    with pytest.raises(UserError, match="neither pictures nor sound"):
        model.encode_media(Media(None, None), "blocks")

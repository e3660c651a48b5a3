"""Checkpoint folders through the command: what users run, at a tiny size."""

import dataclasses
import functools
import io
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

import acckv_jax as kv
import models.answering
from acckv_jax import POLICIES, Modality
from eval.answer import Options, run
from models.batching import in_bucket
from models.errors import UserError
from models.media.clip import Media
from models.media.clip_writer import write_clip
from models.qwen2_5_omni.model import ClipFrames, QwenOmniModel
from models.registry import load, open_source
from tests.acckv_jax.contract_cases import allowed
from tests.models.hub.caches import write_cache
from tests.models.qwen2_5_omni.checkpoints import CONFIG, write_omni, write_thinker
from tests.models.qwen2_5_omni.thinkers import reference_thinker
from tests.programs import new_programs
from tests.prompts import embeddings
from tests.tiers import quick_first
from tests.tolerances import LOGITS
from train.export import main as export


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_omni(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="session")
def model(folder):
    loaded = load(str(folder))
    assert isinstance(loaded, QwenOmniModel)
    return loaded


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """5.3 seconds: 10 frames at the model's two per second."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (53, 120, 160, 3)).astype(np.uint8)
    write_clip(path, frames, 10, np.sin(np.arange(int(5.3 * 16000)) / 8).astype(np.float32) / 4)
    return path


def answer(options, model):
    quiet = Console(file=io.StringIO())
    run(options, quiet, quiet, load=lambda name, progress: model)


def test_what_is_read(model, clip):
    media = model.load_media(clip)
    assert media.frames.shape == (10, 280, 392, 3) and media.fps == 2.0  # the least size of a frame
    interleaved, blocks = (model.encode_media(media, layout) for layout in model.layouts)
    tokens = 5 * 10 * 14
    sound = interleaved.count(Modality.AUDIO)
    assert interleaved.count(Modality.VIDEO) == tokens and 130 <= sound <= 134
    assert blocks.count(Modality.VIDEO) == tokens and blocks.count(Modality.AUDIO) == sound
    assert len(interleaved) == len(blocks)
    start = interleaved.count(Modality.TEXT) - 4
    assert (interleaved.modality[start + 2 : start + 2 + 280] == Modality.VIDEO).all()  # two grids, then 2 s of sound
    assert (interleaved.modality[start + 282 : start + 332] == Modality.AUDIO).all()
    assert interleaved.positions.shape == (3, len(interleaved))
    whole = interleaved.then(model.encode_question("What?"))
    assert whole.positions[0, -1] == len(whole) - 1 + whole.delta


@pytest.mark.parametrize(
    ("total", "rate", "fps"),
    [
        (30, 30.0, 4.0),
        (300, 30.0, 2.0),
        (11540, 30.0, 2.0),
        (18000, 30.0, 1.28),
        (60, 1.0, 1.0),
        (20, 0.5, 0.5),
        (20, 1.9, 1.9),
    ],
)
def test_short_long_and_slow_clips_keep_their_time(total, rate, fps, model):
    frames = ClipFrames(model.config.vision)
    frames.choose(total, rate)
    assert frames.fps == pytest.approx(fps)


def test_the_default_policy_answers(model, clip, capsys):
    answer(Options(clip, ("What?",), budget="0.5", max_new_tokens=2, json=True), model)
    row = json.loads(capsys.readouterr().out)
    assert row["policy"] == "quantized(acckv_plus)" and row["model"] == model.name
    assert {sum(layer.values()) for layer in row["kept"]} == {round(0.5 * sum(row["tokens"].values()))}


@pytest.mark.complete
@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_every_policy_answers(layout, model, clip, capsys):
    answer(Options(clip, ("What is shown?",), compare=True, layout=layout, max_new_tokens=2, json=True), model)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    *rows, last = rows
    assert [row["policy"] for row in rows] == [*POLICIES] and last["policy"] == "quantized(acckv_plus)"
    for row in rows:
        policy = kv.make_policy(row["policy"], budget=0.2)
        length = np.array([sum(row["tokens"].values())])
        layers = [sum(layer.values()) for layer in row["kept"]]
        if row["policy"] in ("pyramid_kv", "mada_kv"):  # a budget for all layers together
            assert np.mean(layers) - 0.5 <= round(0.2 * length[0])
        else:
            assert all(kept <= allowed(policy, length, number) for number, kept in enumerate(layers))
        assert "acckv" not in row["policy"] or all(layer["text"] == row["tokens"]["text"] for layer in row["kept"])


@pytest.mark.complete
@pytest.mark.parametrize("name", ["acckv_plus", "snapkv"])
def test_a_question_alone_and_among_others(name, model, clip):
    """Positions of several axes, split between the clip and the questions."""
    policy = kv.make_policy(name, budget=0.3)
    encoded = models.encode(model, clip)
    ask = functools.partial(models.answer, model, policy=policy, max_new_tokens=3)
    _, among, alone = ask(encoded, "Who?"), ask(encoded, "What is heard?"), ask(clip, "What is heard?")
    assert (alone.token_ids, alone.kept) == (among.token_ids, among.kept)


@pytest.mark.complete
def test_a_conversation_about_several_clips(model, clip):
    """A clip, a picture, an answer, and a second question: as if all of it were read at once."""
    picture = Media(np.full((1, 56, 84, 3), 99, np.uint8), None)
    media = [model.load_media(clip), picture]
    encoded, alone = (model.encode_media(shown, "interleaved") for shown in (media, media[:1]))
    np.testing.assert_array_equal(embeddings(encoded)[: len(alone)], embeddings(alone))
    assert encoded.count(Modality.VIDEO) == alone.count(Modality.VIDEO) + 6
    assert len(encoded) == len(alone) + 6 + 2  # and the marks around the picture
    asked = functools.partial(models.answer, model, max_new_tokens=3)
    first = asked(media, "What?", policy=kv.Full())
    second = asked(None, "And then?", follow_up=first)
    history = encoded.then(model.encode_question("What?")).then(model.embed_text(first.token_ids[:-1]))
    whole = history.then(model.encode_next_question(first.token_ids[-1:], "And then?"))
    reading = models.answering.read_alone(model, whole, "And then?", kv.Full(), 3)
    *_, expected = models.answering.write_answer(model, reading, 3)
    assert second.token_ids == expected.token_ids
    assert int(second.state.cache.length[0]) == len(whole) + len(second.token_ids) - 1


def test_other_lengths_in_the_same_buckets_compile_nothing(model):
    def prompt(seconds):
        frames = np.zeros((int(2 * seconds), 56, 84, 3), np.uint8)
        media = Media(frames, np.sin(np.arange(int(seconds * 16000)) / 8).astype(np.float32) / 4, 2.0)
        return in_bucket(model.encode_media(media, "interleaved").then(model.encode_question("What?")))

    shape = prompt(10.1).inputs.shape
    with new_programs() as found:
        assert [prompt(seconds).inputs.shape for seconds in (9.6, 10.3)] == [shape] * 2
    assert not found


def test_the_thinker_alone(tmp_path, model):
    """As transformers saves it, without prefix and without what makes speech."""
    alone = load(str(write_thinker(tmp_path)))
    assert alone.config == model.config
    question = "What?"
    np.testing.assert_array_equal(*(embeddings(m.encode_question(question)) for m in (alone, model)))


def test_a_name_of_the_hub_is_loaded_from_its_cache(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path, "Qwen/Qwen2.5-Omni-7B", folder)
    cached = load("Qwen/Qwen2.5-Omni-7B@main")
    assert cached.config == model.config and cached.name == "Qwen/Qwen2.5-Omni-7B@main"
    np.testing.assert_array_equal(*(embeddings(m.encode_question("What?")) for m in (cached, model)))


def test_transformers_loads_what_is_exported(folder, tmp_path):
    """The thinker of a whole model's checkpoint, with equal logits."""
    assert export(["--model", str(folder), "--out", str(tmp_path / "thinker"), "--max-shard-gb", "0.02"]) == 0
    theirs, told = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "thinker", output_loading_info=True
    )
    assert not any(told.values()), told
    tokens = {"input_ids": torch.arange(40, 90)[None], "attention_mask": torch.ones((1, 50), dtype=torch.int64)}
    with torch.no_grad():
        found, expected = (model.eval()(**tokens).logits.numpy() for model in (theirs, reference_thinker(CONFIG, 0)))
    np.testing.assert_allclose(found, expected, **LOGITS)
    assert (tmp_path / "thinker" / "tokenizer.json").is_file()
    assert load(str(tmp_path / "thinker")).config == load(str(folder)).config


def test_a_picture_and_sound_alone(model):
    picture = Media(np.zeros((1, 56, 84, 3), np.uint8), None)
    assert model.encode_media(picture, "interleaved").count(Modality.VIDEO) == 6
    sound = Media(None, np.zeros(16000, np.float32))
    assert model.encode_media(sound, "interleaved").count(Modality.AUDIO) == 25
    both = dataclasses.replace(picture, audio=sound.audio)
    assert model.encode_media(both, "interleaved").count(Modality.AUDIO) == 25
    with pytest.raises(UserError, match="neither pictures nor sound"):
        model.encode_media(Media(None, np.zeros(300, np.float32)), "interleaved")


def test_no_model_for_clips(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    with pytest.raises(UserError, match="'gemma', which is not supported; supported are qwen2_5_omni"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="'gemma', which is not supported; supported are llama"):
        open_source(tmp_path)


def test_everything_wrong_with_a_configuration_is_told_at_once(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    thinker = config["thinker_config"]
    del thinker["vision_config"]["depth"], thinker["audio_token_index"]
    thinker["vision_config"]["rope_parameters"]["rope_theta"] = 1e6
    thinker["audio_config"] |= {"activation_function": "relu", "d_model": "32", "n_window": 0}
    thinker["vision_config"]["window_size"] = 50
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        load(str(tmp_path))
    for problem in (
        "thinker_config.vision_config.depth is missing",
        "thinker_config.audio_token_index is missing",
        "rope_parameters.rope_theta is 1000000.0, but only 10000.0 is supported",
        "activation_function is 'relu', but only 'gelu' is supported",
        "audio_config.d_model must be of type int, not '32'",
        "audio_config.n_window must be at least 1, not 0",
        "vision_config.window_size must be a multiple of 28",
    ):
        assert problem in str(error.value)


@pytest.mark.parametrize("stated", [False, True, None])
def test_a_head_that_is_not_there(folder, tmp_path, stated):
    """Is an error where the configuration says that there is one; else the embeddings are the head."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    tensors = load_file(folder / "model.safetensors")
    del tensors["thinker.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["thinker_config"]["tie_word_embeddings"] = stated
    (tmp_path / "config.json").write_text(json.dumps(config))
    if stated is False:
        with pytest.raises(UserError, match="1 missing: thinker.lm_head.weight"):
            load(str(tmp_path))
    else:
        assert load(str(tmp_path)).config.text.tie_word_embeddings


@pytest.mark.parametrize(
    "name", quick_first(("thinker.model.norm.weight", "thinker.model.layers.0.self_attn.q_proj.weight"))
)
def test_weights_that_are_no_numbers(name, folder, clip, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model.safetensors").unlink()
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flat[0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not finite .* copy the checkpoint again"):
        answer(Options(clip, ("What?",), budget="0.5", max_new_tokens=2), load(str(tmp_path)))


def test_damaged_checkpoints(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    tensors = tmp_path / "model.safetensors"
    tensors.unlink()
    with pytest.raises(UserError, match="is no checkpoint: it has none of model.safetensors"):
        load(str(tmp_path))
    tensors.write_bytes((folder / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(UserError, match="100,000 bytes where its header asks for"):
        load(str(tmp_path))

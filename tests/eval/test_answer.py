"""The command that answers: its output, its numbers, one prefill for many questions, and users' mistakes."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from acckv_jax import POLICIES, bucket_length
from eval.answer import DEMO, Options, main, parse_budget, run
from eval.answering import answer_all, answer_one
from eval.policies import build_policy
from models.acckv_tau import TAU
from models.errors import UserError
from models.media.clip_writer import write_clip

QUESTIONS = ("What is shown second?", "Which number is spoken last?")
FIELDS = {
    "answer",
    "model",
    "policy",
    "budget",
    "tokens",
    "kept",
    "cache_bytes",
    "full_cache_bytes",
    "decode_room_bytes",
    "metadata_bytes",
    "prefill_seconds",
    "decode_tokens_per_second",
    "roofline",
}
TIMES = {"prefill_seconds", "decode_tokens_per_second", "roofline"}


@pytest.fixture(scope="session")
def prefix(small_model):
    return small_model.encode_media(small_model.load_media(DEMO / "demo.mp4"), "interleaved")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Three seconds of noise with a tone."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(path, frames, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    return path


def printed(options, small_model):
    out = io.StringIO()
    run(options, Console(file=out, width=200), Console(file=io.StringIO()), load=lambda name, progress: small_model)
    return out.getvalue()


@pytest.mark.parametrize("name", POLICIES)
def test_one_question_gives_what_it_gives_among_many(name, small_model, prefix):
    budget = 1.0 if name == "full" else 0.2
    policy = build_policy(name, budget, tau=TAU[small_model.family])
    *pieces, alone = answer_one(small_model, prefix, QUESTIONS[1], (name, policy), 6, 1e10)
    among = list(answer_all(small_model, prefix, QUESTIONS, {name: policy}, 6, 1e10))[1]
    assert "".join(pieces).strip() == alone.answer == among.answer
    assert alone.answer
    assert alone.tokens == among.tokens
    # Two buckets instead of one may allocate a few slots more, but never let a row keep more.
    for one, other in zip(alone.kept, among.kept, strict=True):
        assert one == pytest.approx(other)
        assert sum(one.values()) <= round(budget * sum(alone.tokens.values()))


def test_bytes_are_what_the_budget_promises(small_model, prefix):
    policy = build_policy("acckv_plus", 0.2, tau=TAU[small_model.family])
    *_, answer = answer_one(small_model, prefix, QUESTIONS[0], ("acckv_plus", policy), 4, 1e10)
    bucket = bucket_length(sum(answer.tokens.values()))
    decoder = small_model.config.decoder
    slot = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * 4
    assert answer.full_cache_bytes == bucket * slot
    assert answer.cache_bytes == round(0.2 * bucket) * slot


@pytest.mark.parametrize("stats", [False, True])
def test_json_is_one_object_with_all_fields(stats, small_model, clip, capsys):
    run(
        Options(clip, ("What?",), policy="acckv", budget="60", max_new_tokens=3, json=True, stats=stats),
        Console(file=io.StringIO()),
        Console(file=io.StringIO()),
        load=lambda name, progress: small_model,
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= FIELDS - (set() if stats else TIMES)
    assert found["budget"] == 60
    assert len(found["kept"]) == 2
    assert set(found["kept"][0]) == {"text", "audio", "video"}
    assert found["tokens"]["video"] == 48
    assert 0 < found["cache_bytes"] < found["full_cache_bytes"]


def test_table_compares_all_policies(small_model, clip):
    text = printed(Options(clip, ("What?",), compare=True, budget="0.5", max_new_tokens=2), small_model)
    for name in POLICIES:
        assert f"│{name}" in text


@pytest.mark.parametrize("layout", ["interleaved", "blocks"])
def test_sound_alone_and_pictures_alone(layout, small_model, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(tmp_path / "silent.mp4", frames, 1, None)
    write_clip(tmp_path / "sound.mkv", None, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    for name, absent in (("silent.mp4", "audio"), ("sound.mkv", "video")):
        media = small_model.load_media(tmp_path / name)
        policy = build_policy("acckv", 0.6, tau=TAU[small_model.family])
        chunk = small_model.encode_media(media, layout)
        *_, answer = answer_one(small_model, chunk, "What?", ("acckv", policy), 2, 1e10)
        assert answer.tokens[absent] == 0 and sum(answer.tokens.values()) > 30


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"budget": "0"}, "no number of slots"),
        ({"budget": "-3"}, "no number of slots"),
        ({"budget": "1.5"}, "no fraction of the prompt"),
        ({"budget": "0.0"}, "no fraction of the prompt"),
        ({"budget": "nan"}, "no fraction of the prompt"),
        ({"budget": "many"}, "is no number"),
        ({"budget": "5"}, "smallest possible budget is"),
        ({"policy": "lru"}, "unknown policy 'lru'; choose one of full,"),
        ({"option": ("speed=9",)}, "has no option 'speed'"),
        ({"option": ("floor",)}, "has no value; write NAME=VALUE"),
        ({"option": ("split=evenly",)}, "give joint or weighted"),
        ({"layout": "diagonal"}, "Unknown layout 'diagonal'; choose one of interleaved, blocks"),
        ({"questions": ("  ",)}, "question is empty"),
        ({"questions": ()}, "No question was asked"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"max_new_tokens": 4000}, "ask for at most 1958 new tokens"),
        ({"questions": ("What? " * 1200,)}, "ask a shorter question"),
        ({"questions": ("why " * 3000,)}, "reads at most 2048"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, small_model, clip):
    chosen = {"clip": clip, "questions": ("What?",), "policy": "acckv", **arguments}
    with pytest.raises(UserError) as error:
        printed(Options(**chosen), small_model)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.mp4", "What?"], "There is no file missing.mp4"),
        (["missing.mp4", "What?", "--model", "gpt"], "Unknown model 'gpt'"),
    ],
)
def test_the_command_exits_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_budget_with_a_decimal_point_is_a_fraction():
    assert parse_budget("0.2") == 0.2
    assert parse_budget("512") == 512
    assert isinstance(parse_budget("1.0"), float)
    assert isinstance(parse_budget("1"), int)

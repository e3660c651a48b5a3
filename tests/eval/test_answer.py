"""The command that answers: its output, its numbers, one prefill for many questions, and users' mistakes."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import models.answering
from acckv_jax import POLICIES, CacheBytes, Full
from eval.answer import DEMO, Options, main, parse_budget, run
from eval.answering import Answered
from eval.report import answer_tables
from models.errors import UserError
from models.media.clip_writer import write_clip
from tests.tiers import quick_first

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
}
TIMES = {"prefill_seconds", "prune_seconds", "decode_tokens_per_second", "roofline"}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Three seconds of noise with a tone, under a name that looks like markup."""
    path = tmp_path_factory.mktemp("clips") / "clip [dQw4] [music].mp4"
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 80, 3)).astype(np.uint8)
    write_clip(path, frames, 1, np.sin(np.arange(48000) / 8).astype(np.float32) / 4)
    return str(path)


def printed(options, small_model):
    out = io.StringIO()
    run(options, Console(file=out, width=200), Console(file=io.StringIO()), load=lambda name, progress: small_model)
    return out.getvalue()


def test_json_is_one_object_with_all_fields(small_model, clip, capsys):
    run(
        Options(clip, ("What?",), policy="acckv", budget="60", max_new_tokens=3, json=True),
        Console(file=io.StringIO()),
        Console(file=io.StringIO()),
        load=lambda name, progress: small_model,
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found) == FIELDS | {"question", "notes"} and found["notes"] == []
    assert found["budget"] == 60
    assert len(found["kept"]) == 3
    assert set(found["kept"][0]) == {"text", "audio", "video"}
    assert found["tokens"]["video"] == 48
    assert 0 < found["cache_bytes"] < found["full_cache_bytes"]


@pytest.mark.parametrize("shown", quick_first(["answer", "json", "stats"]))
def test_what_was_left_out_of_a_clip_stands_beside_the_answer(shown, small_model, capsys):
    damaged = Path(__file__).parents[1] / "models" / "media" / "clips" / "cut_after_sound_ended.mp4"
    asked = Options(str(damaged), ("What?",), policy="acckv", budget="60", max_new_tokens=3)
    out = printed(dataclasses.replace(asked, **({shown: True} if shown != "answer" else {})), small_model)
    found = "".join(json.loads(capsys.readouterr().out)["notes"]) if shown == "json" else " ".join(out.split())
    assert f"The sound track of {damaged} is empty and was left out." in found


@pytest.mark.complete
def test_table_compares_all_policies(small_model, clip):
    text = printed(Options(clip, ("What?",), compare=True, budget="0.5", max_new_tokens=2), small_model)
    for name in POLICIES:
        assert f"│{name}" in text


def rows(options, small_model, capsys):
    """The objects that a run prints."""
    printed(dataclasses.replace(options, json=True), small_model)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.complete
@pytest.mark.parametrize("count", [1, 2])
def test_measured_answers_are_those_of_plain_runs(count, small_model, clip, capsys):
    """What --stats adds is time alone, for several questions and for one."""
    questions = QUESTIONS[:count]
    plain, timed = (
        rows(Options(clip, questions, budget="0.6", max_new_tokens=5, stats=stats), small_model, capsys)
        for stats in (False, True)
    )
    assert len(plain) == len(timed) == len(questions)
    for one, other in zip(plain, timed, strict=True):
        assert set(one) == FIELDS | {"question", "notes"} and set(other) - set(one) == TIMES
        same = one.keys() - {"decode_room_bytes", "metadata_bytes"}  # these grow with the slots reserved
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
        assert 0 < other["decode_tokens_per_second"] and 0 < other["prefill_seconds"]


@pytest.mark.complete
def test_one_conversation(small_model, clip, capsys):
    """The second question's answer is that of the library, and not the one that it gets alone."""
    options = Options(clip, QUESTIONS, budget="0.6", max_new_tokens=8)
    apart = rows(options, small_model, capsys)
    together = rows(dataclasses.replace(options, follow_up=True), small_model, capsys)
    policy = models.answering.default_policy(small_model).with_budget(0.6)
    first = models.answer(small_model, clip, QUESTIONS[0], policy=policy, max_new_tokens=8)
    second = models.answer(small_model, None, QUESTIONS[1], max_new_tokens=8, follow_up=first)
    assert [row["answer"] for row in together] == [first.text, second.text]
    assert together[0]["answer"] == apart[0]["answer"] and together[1]["answer"] != apart[1]["answer"]


@pytest.mark.complete
def test_draws_depend_on_the_seed(small_model, clip, capsys):
    options = Options(clip, ("What?",), budget="0.6", max_new_tokens=8, temperature=2.0, top_k=50)
    first, again, other = (
        rows(dataclasses.replace(options, seed=seed), small_model, capsys)[0]["answer"] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.complete
def test_several_clips_and_a_wrapped_policy(small_model, clip, capsys):
    chosen = Options(clip, ("What?",), policy="protected(snapkv)", option=("first=8", "window_size=4"), budget="0.6")
    chosen = dataclasses.replace(chosen, clip_too=(clip,), max_new_tokens=2)
    (row,) = rows(chosen, small_model, capsys)
    assert row["tokens"]["video"] == 2 * 48 and row["policy"] == "protected(snapkv)"


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
        ({"temperature": -1.0}, "temperature must be at least 0.0001"),
        ({"follow_up": True, "stats": True}, "leave out --compare and --stats"),
        ({"policy": "protected(lru)"}, "unknown policy 'lru'"),
        ({"policy": "protected(acckv)", "option": ("bits=4",)}, "has no option 'bits'; choose one of"),
        ({"layout": "diagonal"}, "Unknown layout 'diagonal'; choose one of interleaved, blocks"),
        ({"questions": ("  ",)}, "question is empty"),
        ({"questions": (b"Caf\xe9?".decode(errors="surrogateescape"),)}, "question is not UTF-8"),
        ({"clip": ""}, "clip's name is empty"),
        ({"clip": "https://example.org/clip.mp4"}, "is a URL"),
        ({"clip": "What is shown in this clip? " * 20}, "the clip comes first"),
        ({"policy": "full", "budget": "0.5"}, "full keeps the whole cache and has no budget"),
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
        ([str(DEMO / "demo.mp4"), "What?", "--model", "gpt"], "Unknown model 'gpt'"),
        ([str(DEMO / "demo.mp4"), "What?", "--model", "Qwen/Qwen9-Omni"], "hf download Qwen/Qwen9-Omni --local-dir"),
    ],
)
def test_the_command_exits_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_nothing_typed_or_answered_is_markup():
    text = "[/] [/INST] [music] [bold]loud[/bold]"
    found = models.Answer(
        text=text,
        token_ids=(1,),
        question=text,
        policy=Full(),
        prompt_tokens={"text": 1, "video": 1, "audio": 1},
        kept=[{"text": 1.0, "video": 1.0, "audio": 1.0}],
        cache_bytes=CacheBytes(4, 0, 0),
        full_cache_bytes=4,
        state=None,
    )
    out = io.StringIO()
    Console(file=out, width=200).print(answer_tables([Answered("full", found)], "Title [dQw4].mp4"))
    assert out.getvalue().count(text) == 2 and "Title [dQw4].mp4" in out.getvalue()


@pytest.mark.complete
@pytest.mark.packaging
def test_output_in_ascii():
    command = [sys.executable, "-m", "eval.answer", "caf\u00e9.mp4", "What?"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2 and b"There is no file caf?.mp4" in done.stderr


def test_budget_with_a_decimal_point_is_a_fraction():
    assert parse_budget("0.2") == 0.2
    assert parse_budget("512") == 512
    assert isinstance(parse_budget("1.0"), float)
    assert isinstance(parse_budget("1"), int)

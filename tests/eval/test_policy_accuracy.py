"""Accuracy under policies: its answers are those of an unpruned model where nothing is pruned, and users' mistakes."""

import json

import pytest

import acckv_jax
import models
from eval.held_out import GROUPS, HeldOutClips
from eval.policy_accuracy import Options, answers, main, one_of_each, run, variants
from models.answering import EncodedClip
from models.interface import EmbeddedPrompt
from models.smolav.config import LAYOUTS


@pytest.fixture(scope="module")
def clips(small_model):
    return HeldOutClips.load(small_model.encoders)


def test_without_pruning_answers_are_those_of_the_whole_prompt(small_model, clips):
    index, clip, media = next(clips.numbered(range(1)))
    prefix = small_model.encode_features(media, LAYOUTS[0])
    asked = one_of_each(clip, index)[:2]
    policies = variants(Options(budgets=(1.0,), policies=("h2o",)), 0.6)
    found = {name: turns for (name, _), *turns in answers(small_model, prefix, asked, policies)}
    assert found.keys() == {"full", "h2o"}
    assert found["full"] == found["h2o"]

    def alone(before: EmbeddedPrompt, text: str) -> str:
        clip = EncodedClip(small_model, before)
        return models.answer(small_model, clip, text, policy=acckv_jax.Full(), max_new_tokens=4).text

    first, second = ([answer.removesuffix("...").strip() for answer in turn] for turn in found["full"])
    assert first == [alone(prefix, question.text) for question in asked]
    for question, following, answer in zip(asked, asked[::-1], second, strict=True):
        both = small_model.encode_next_question(question.answer, following.text)
        turn, _ = both.split(len(both) - len(small_model.encode_question(following.text)))
        assert answer == alone(prefix.then(small_model.encode_question(question.text)).then(turn), following.text)


def test_result_has_a_row_per_policy_budget_and_question(small_model, clips, tmp_path, capsys):
    options = Options(clips=1, budgets=(0.5,), policies=(), option=("acckv:merge=none",), out=tmp_path / "out.json")
    run(options, load=lambda: (small_model, clips))
    result = json.loads(options.out.read_text())
    rows = {(row["policy"], row["budget"], row["question"]): row for row in result["rows"]}
    assert list(rows) == [(p, b, q) for p, b in (("full", 1), ("acckv:merge=none", 0.5)) for q in ("first", "second")]
    index, clip, _ = next(clips.numbered(range(1)))
    for row in rows.values():
        assert sum(row[group]["asked"] for group in GROUPS) == len(one_of_each(clip, index))
        assert 0 <= row["all"] <= 1
    assert "acckv:merge=none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--clips", "0"], "--clips must be at least 1, not 0"),
        (["--first", "990", "--clips", "20"], "not 990 to 1009"),
        (["--policies", "lru"], "unknown policy 'lru'; choose one of full,"),
        (["--budgets", "1.5"], "budget 1.5 is no fraction"),
        (["--option", "acckv"], "Variant 'acckv' names no option"),
        (["--option", "acckv:merge=no"], "merge of policy acckv cannot be 'no'"),
        (["--option", "lru:merge=none"], "unknown policy 'lru'"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""

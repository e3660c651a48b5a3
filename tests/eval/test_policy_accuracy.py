"""Accuracy under policies: its answers are those of an unpruned model where nothing is pruned, and users' mistakes."""

import json

import pytest

import acckv_jax as kv
from eval.benchmark import build_policies
from eval.held_out import GROUPS, HeldOutClips
from eval.metrics import CUT_OFF
from eval.policy_accuracy import Options, main, run
from eval.tasks.clips import Clips, one_of_each
from models.answering import EncodedClip, answer
from models.interface import EmbeddedPrompt


@pytest.fixture(scope="module")
def task(small_model):
    return Clips(small_model, HeldOutClips.load(small_model.encoders))


@pytest.mark.complete
def test_without_pruning_answers_are_those_of_the_whole_prompt(task):
    example = task.example("0")
    policies = build_policies(("h2o",), ("1.0",), task)
    found = {variant.policy: said for variant, said in task.answers(example, policies, list(policies))}
    assert found.keys() == {"full", "h2o"}
    assert [said.answers for said in found["full"]] == [said.answers for said in found["h2o"]]
    length, decoder = len(example.prefix), task.model.decoder_config
    for said, [question, _] in zip(found["full"], example.conversations, strict=True):
        tokens = length + len(task.model.encode_question(question.text)) - 1  # the last is held back
        slot = 2 * decoder.head_dim * 4 + 4 + 1 + 1 + 4 + 4  # keys and values; index, modality, valid, weight and mass
        size = tokens * slot * decoder.num_key_value_heads * decoder.num_hidden_layers
        assert said.cache_bytes == size
    assert [said.cache_bytes for said in found["h2o"]] == [said.cache_bytes for said in found["full"]]

    def alone(before: EmbeddedPrompt, text: str) -> str:
        clip = EncodedClip(task.model, before)
        return answer(task.model, clip, text, policy=kv.Full(), max_new_tokens=4).text

    for conversation, said in list(zip(example.conversations, found["full"], strict=True))[:2]:
        first, second = (text.removesuffix(CUT_OFF).strip() for text in said.answers)
        question, following = conversation
        assert first == alone(example.prefix, question.text)
        both = task.model.encode_next_question(question.references[0], following.text)
        turn, _ = both.split(len(both) - len(task.model.encode_question(following.text)))
        before = example.prefix.then(task.model.encode_question(question.text)).then(turn)
        assert second == alone(before, following.text)


def test_a_second_question_is_another_one_of_the_clip(task):
    [(number, clip, _)] = task.clips.numbered([3])
    asked = [question.text for question in one_of_each(clip, number)]
    pairs = [(first.text, second.text) for first, second in task.example("3").conversations]
    assert [first for first, _ in pairs] == asked
    assert [second for _, second in pairs] == [*asked[1:], asked[0]]


@pytest.mark.complete
def test_result_has_a_row_per_policy_budget_and_question(task, tmp_path, capsys):
    options = Options(clips=1, budgets=(0.5,), policies=(), option=("acckv:merge=none",), out=tmp_path / "out.json")
    run(options, load=lambda *_: task)
    result = json.loads(options.out.read_text())
    rows = {(row["policy"], row["budget"], row["question"]): row for row in result["rows"]}
    assert list(rows) == [(p, b, q) for p, b in (("full", 1), ("acckv:merge=none", 0.5)) for q in ("first", "second")]
    for row in rows.values():
        assert sum(row[group]["asked"] for group in GROUPS) == len(task.example("0").conversations)
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
        (["--policies", "protected(lru)"], "unknown policy 'lru'"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""

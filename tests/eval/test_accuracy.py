"""What the accuracy table is made of."""

import json

import pytest

from eval.accuracy import Options, main, run, summary
from eval.benchmark import build_policies
from eval.held_out import GROUPS, HeldOutClips, candidates, group_of
from eval.metrics import CUT_OFF, METRICS
from eval.tasks.clips import Clips
from eval.tasks.clips_full import ClipsFull
from eval.tasks.interface import Example
from models.smolav.config import LAYOUTS
from models.smolav.model import SmolAVModel
from train.data.clips import Clip, PictureSpan, SoundSpan
from train.data.questions import questions

CLIP = Clip(
    6,
    (PictureSpan(0, "cat", 0, 3), PictureSpan(1, "ship", 3, 6)),
    (SoundSpan("digit", 0, "two", 0.2, 0.8, 0.5), SoundSpan("instrument", 0, "harp", 3.2, 5.0, 0.5)),
)


@pytest.fixture(scope="module")
def clips(small_model):
    return HeldOutClips.load(small_model.encoders)


def test_every_question_belongs_to_a_group_and_knows_its_candidates() -> None:
    asked = questions(CLIP)
    assert {group_of(question) for question in asked} == set(GROUPS)
    for question in asked:
        pictures = question.answer in ("cat", "ship")
        assert candidates(CLIP, question) == (2 if pictures else 1)


def row(group: str, layout: str, kind: str, expected: str, answer: str, candidates: int) -> dict:
    labels = {"layout": layout, "answer": kind, "candidates": candidates}
    score = METRICS["exact_match"](answer, (expected,))
    return {"group": group, "answer": answer, "references": [expected], "score": score, "labels": labels}


def test_summary_counts() -> None:
    found = [
        row("video", "blocks", "picture", "cat", "cat", 2),
        row("video", "blocks", "picture", "cat", "dog", 4),
        row("video", "interleaved", "picture", "dog", "dog", 4),
        row("instruments", "blocks", "instrument", "harp", "harp" + CUT_OFF, 1),
    ]
    result = summary(found, 2)
    assert result["groups"]["video"]["questions"] == 3
    assert result["groups"]["video"]["accuracy"] == 0.6667
    assert result["groups"]["video"]["chance_among_the_clips_own"] == 0.3333
    assert result["groups"]["instruments"]["accuracy"] == 0
    assert result["layouts"]["blocks"]["video"] == 0.5
    assert result["confusions"]["picture"] == {"cat": {"cat": 1, "dog": 1}, "dog": {"dog": 1}}
    assert result["confusions"]["instrument"] == {"harp": {"harp": 1}}


def test_every_question_of_every_clip_is_answered_once(small_model, clips, tmp_path, capsys) -> None:
    options = Options(clips=2, answers=tmp_path / "answers.jsonl", out=tmp_path / "out.json")
    run(options, load=lambda *_: ClipsFull(small_model, clips))
    result = json.loads((tmp_path / "out.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()[1:]]
    expected = [(f"{i}", q.text, q.answer) for i, clip, _ in clips.numbered(range(2)) for q in questions(clip)]
    assert [(r["example"], *r["references"]) for r in rows] == [(i, answer) for i, _, answer in expected]
    assert [r["labels"]["layout"] for r in rows] == [LAYOUTS[int(i)] for i, *_ in expected]
    assert sum(group["questions"] for group in result["groups"].values()) == len(expected)
    assert result["clips"] == 2 and "2 held-out clips" in capsys.readouterr().out


@pytest.mark.complete
def test_packed_answers_are_right_where_decoded_ones_are(clips) -> None:
    """With the trained model: the packed pass without a cache, and greedy decoding over the full cache."""
    packed, decoded = ClipsFull(SmolAVModel.load(), clips), Clips(SmolAVModel.load(), clips)
    example, full = packed.example("1"), build_policies((), (), packed)
    [(_, answers)] = packed.answers(example, full, list(full))
    prefix = decoded.example("1").prefix
    [(_, others)] = decoded.answers(Example(prefix, example.conversations), full, list(full))
    expected = [question.references[0] for [question] in example.conversations]
    right = [answer == wanted for ([answer], _), wanted in zip(answers, expected, strict=True)]
    assert right == [answer == wanted for ([answer], _), wanted in zip(others, expected, strict=True)]
    assert 0.5 < sum(right) / len(right)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--clips", "0"], "--clips must be 1 to 1000, not 0."),
        (["--clips", "1", "--model", "nowhere"], "Unknown model 'nowhere'"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and shown.out == ""

"""What the accuracy table is made of."""

from eval.accuracy import Outcome, summary
from eval.held_out import GROUPS, candidates, group_of
from train.data.clips import Clip, PictureSpan, SoundSpan
from train.data.questions import questions

CLIP = Clip(
    6,
    (PictureSpan(0, "cat", 0, 3), PictureSpan(1, "ship", 3, 6)),
    (SoundSpan("digit", 0, "two", 0.2, 0.8, 0.5), SoundSpan("instrument", 0, "harp", 3.2, 5.0, 0.5)),
)


def test_every_question_belongs_to_a_group_and_knows_its_candidates() -> None:
    asked = questions(CLIP)
    assert {group_of(question) for question in asked} == set(GROUPS)
    for question in asked:
        pictures = question.answer in ("cat", "ship")
        assert candidates(CLIP, question) == (2 if pictures else 1)


def test_summary_counts() -> None:
    found = [
        Outcome("video", "blocks", "picture", "cat", "cat", True, 2),
        Outcome("video", "blocks", "picture", "cat", "dog", False, 4),
        Outcome("video", "interleaved", "picture", "dog", "dog", True, 4),
        Outcome("instruments", "blocks", "instrument", "harp", "harp", False, 1),
    ]
    result = summary(found, 2)
    assert result["groups"]["video"]["questions"] == 3
    assert result["groups"]["video"]["accuracy"] == 0.6667
    assert result["groups"]["video"]["chance_among_the_clips_own"] == 0.3333
    assert result["layouts"]["blocks"]["video"] == 0.5
    assert result["confusions"]["picture"] == {"cat": {"cat": 1, "dog": 1}, "dog": {"dog": 1}}
    assert result["confusions"]["instrument"] == {"harp": {"harp": 1}}

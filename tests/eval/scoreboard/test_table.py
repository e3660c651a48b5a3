"""The scoreboard of made-up answers, whose numbers can be counted."""

import csv
import io

import pytest

from eval.results import Variant
from eval.scoreboard.table import Answers, as_csv, as_json, comparisons_of, lines_of

EXAMPLES = 12


def row(example, policy, budget, turn, score, group="video", size=100, question=None):
    return {
        "example": f"{example}",
        "policy": policy,
        "budget": budget,
        "question": question or turn,
        "of": 2,
        "turn": turn,
        "group": group,
        "answer": "",
        "references": [],
        "score": score,
        "labels": {},
        "bytes": size,
    }


def rows():
    """The full cache is always right; `good` at first questions only, `random` at every second clip."""
    for i in range(EXAMPLES):
        group = ("video", "audio")[i % 2]
        for turn in (1, 2):
            yield row(i, "full", 1.0, turn, 1.0, group, 1000)
            yield row(i, "good", 0.1, turn, float(turn == 1), group)
            yield row(i, "random", 0.1, turn, float(i % 2 == 0), group)
    yield {"example": "broken", "error": "There is no clip."}


@pytest.fixture
def answers():
    return Answers.of("clips", "exact_match", rows())


def test_lines(answers):
    lines = {(line.part.turn, line.part.group, line.policy): line for line in lines_of(answers)}
    assert len(lines) == 2 * 3 * 3
    good, later = lines["first", "all", "good"], lines["later", "all", "good"]
    assert (good.score.value, good.to_full.value, good.to_random.value) == (1.0, 0.0, 0.5)
    assert (later.score.value, later.to_full.value, later.to_random.value) == (0.0, -1.0, -0.5)
    assert (good.not_inferior, later.not_inferior) == (True, False)
    assert (good.cache_bytes, good.share) == (100, 0.1)
    assert lines["first", "audio", "random"].score.value == 0.0 and lines["first", "audio", "random"].score.clips == 6
    full = lines["first", "all", "full"]
    assert full.to_full is None and full.to_random is None and full.not_inferior is None and full.share == 1


def test_examples_that_one_policy_lacks_count_for_none(answers):
    some = [r for r in rows() if not (r.get("policy") == "good" and r["example"] in "012")]
    fewer = Answers.of("clips", "exact_match", some)
    assert {line.score.clips for line in lines_of(fewer) if line.part.group == "all"} == {EXAMPLES - 3}


def test_comparisons_are_corrected_for_their_number(answers):
    found = comparisons_of(answers, ["good"])
    first = next(c for c in found if (c.part.turn, c.part.group) == ("first", "all"))
    assert (first.rival, first.gain.value) == ("random", 0.5) and first.corrected < 0.01
    bad = [r for r in rows() if r.get("policy") == "random"]
    crowd = [r | {"policy": f"copy{n}", "score": 0.0} for n in range(9) for r in bad]
    many = comparisons_of(Answers.of("clips", "exact_match", [*rows(), *crowd]), ["good"])
    again = next(c for c in many if (c.part.turn, c.part.group, c.rival) == ("first", "all", "random"))
    assert again.gain.p <= again.corrected <= 10 * again.gain.p
    assert comparisons_of(answers, ["good"], rivals=["snapkv"]) == [] == comparisons_of(answers, ["unknown"])


def test_comparisons_at_another_budget_need_equal_bytes(answers):
    sizes = {0.3: 104, 0.6: 106, 0.9: None}
    good = [r for r in rows() if r.get("policy") == "good"]
    integers = [r | {"policy": "integers", "budget": b, "bytes": size} for b, size in sizes.items() for r in good]
    found = comparisons_of(Answers.of("clips", "exact_match", [*rows(), *integers]), ["integers"])
    pairs = {(c.budget, c.rival, c.rival_budget) for c in found}
    assert pairs == {(0.3, "good", 0.1), (0.3, "random", 0.1)}


def test_errors_count_downwards():
    wrong = [
        row(i, p, b, 1, s) for i in range(8) for p, b, s in (("full", 1.0, 0.1), ("a", 0.1, 0.12), ("b", 0.1, 0.5))
    ]
    answers = Answers.of("transcripts", "word_error_rate", wrong, lower_is_better=True)
    lines = {line.policy: line for line in lines_of(answers)}
    assert lines["a"].not_inferior and not lines["b"].not_inferior
    (gain,) = comparisons_of(answers, ["a"])
    assert gain.gain.value == pytest.approx(0.38)


def test_a_table_without_the_full_cache():
    with pytest.raises(ValueError, match="clips: a scoreboard needs answers of the full cache"):
        lines_of(Answers.of("clips", "exact_match", [row(0, "random", 0.1, 1, 1.0)]))


def test_files(answers):
    lines = lines_of(answers)
    table = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert len(table) == len(lines)
    assert table[1]["policy"] == "good" and table[1]["to_random"] == "0.5" and table[0]["to_full"] == ""
    first = as_json(lines[0])
    assert first["task"] == "clips" and first["score"]["value"] == 1.0 and first["to_full"] is None
    assert as_json(comparisons_of(answers, ["good"])[0])["gain"]["p"] > 0


def test_slots_are_no_fractions():
    mixed = [row(0, "full", 1.0, 1, 1.0), row(0, "a", 1, 1, 1.0), row(0, "a", 1.0, 1, 0.0)]
    answers = Answers.of("clips", "exact_match", mixed)
    assert set(answers.rows) == {Variant("full", "1.0"), Variant("a", "1"), Variant("a", "1.0")}
    assert [type(line.budget) for line in lines_of(answers)] == [float, int, float]

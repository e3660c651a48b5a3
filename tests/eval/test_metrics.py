"""How answers are scored."""

import pytest

from eval.metrics import CUT_OFF, METRICS


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("cat", ("cat",), 1),
        ("dog", ("cat", "dog"), 1),
        ("Cat", ("cat",), 0),
        ("cat" + CUT_OFF, ("cat",), 0),
        ("", ("cat",), 0),
    ],
)
def test_exact_match(answer, references, score):
    assert METRICS["exact_match"](answer, references) == score


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("one two three", ("one two three",), 0),
        ("One TWO", ("one two",), 0),
        ("one two" + CUT_OFF, ("one two",), 0),
        ("one three", ("one two three",), 1 / 3),  # deleted
        ("one four three", ("one two three",), 1 / 3),  # replaced
        ("zero one two three", ("one two three",), 1 / 3),  # inserted
        ("three two one", ("one two three",), 2 / 3),
        ("two three four", ("one two three",), 2 / 3),  # one deleted, one inserted
        ("", ("one two",), 1),
        ("a b c d", ("one",), 4),
        ("one two", ("one", "one two three four"), 0.5),  # the nearest reference
    ],
)
def test_word_error_rate(answer, references, score):
    assert METRICS["word_error_rate"](answer, references) == pytest.approx(score)


def test_a_reference_without_words_has_no_error_rate():
    with pytest.raises(ValueError, match="a reference without words"):
        METRICS["word_error_rate"]("one", (" ",))

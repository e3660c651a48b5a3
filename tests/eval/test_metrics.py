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
    assert METRICS["capped_word_error_rate"](answer, references) == pytest.approx(min(score, 1))


def test_a_reference_without_words_has_no_error_rate():
    with pytest.raises(ValueError, match="a reference without words"):
        METRICS["word_error_rate"]("one", (" ",))
    with pytest.raises(ValueError, match="a reference without words has no ROUGE-L"):
        METRICS["rouge_l"]("one", (" . ",))


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("a cat sits on the mat", ("a cat sits on the mat",), 1),
        (
            "The man isn't wearing a hat, he's outside.",
            (
                "no he is not wearing a hat",
                "the man isn 't wearing any hat .",
                "he 's outside without a hat",
            ),
            0.486056,
        ),
        ("I cannot tell.", ("i can not tell what it is",), 0.693182),
        ("Yes", ("no , he does not speak",), 0),
        (
            "two men and a dog in the kitchen",
            ("a dog and two men are in the kitchen", "two men in the kitchen"),
            0.802632,
        ),
        ("It is 100% dark; a low-light room.", ("it is dark in a low-light room", "100 % dark"), 0.879808),
        ("they talk and talk and talk" + CUT_OFF, ("they talk",), 0.549550),
        (CUT_OFF, ("they talk",), 0),
    ],
)
def test_rouge_l(answer, references, score):
    """What pycocoevalcap's tokenizer and Rouge give (1.2 of PyPI)."""
    assert METRICS["rouge_l"](answer, references) == pytest.approx(score, abs=1e-6)

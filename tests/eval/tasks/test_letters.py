"""What benchmarks read out of answers: as their authors' programs do, on answers that chat models give."""

import pytest

from eval.tasks.letters import first_letter, first_word_letter, leading_letter, only_letter, yes_or_no

CHOICES = ("A. A bell.", "B. A dog's bark.", "C. Rain.", "D. Wind.")


@pytest.mark.parametrize(
    ("parse", "answer", "found"),
    [
        (first_letter, "B", "B"),
        (first_letter, "(C) Rain.", "C"),
        (first_letter, "The best answer is D.", "D"),
        (first_letter, "Best answer: C", "C"),
        (first_letter, "Answer: D", "D"),
        (first_letter, "rain", "C"),
        (first_letter, "it is a dog's bark in the wind", ""),  # two choices
        (first_letter, "no idea", ""),
        (first_letter, "", ""),
        (first_letter, "B" + 15 * " word" + "...", "B"),
        (leading_letter, " b. A dog", "B"),
        (leading_letter, "A", "A"),
        (leading_letter, "The answer is B", ""),
        (leading_letter, "Don't know", "D"),  # as the authors count it
        (only_letter, "B", "B"),
        (only_letter, "b.", "B"),
        (only_letter, "C. Rain", "C"),
        (only_letter, "(D)", "D"),
        (only_letter, r"It is \boxed{A}", "A"),
        (only_letter, "/box{B}", "B"),
        (only_letter, "The answer is B", ""),
        (only_letter, "", ""),
        (first_word_letter, "(B) two", "B"),
        (first_word_letter, "B. two", "B"),
        (first_word_letter, "b", "B"),
        (first_word_letter, "(C)two\n(A)", "C"),
        (first_word_letter, "two", ""),
        (first_word_letter, "Best option: (A)", ""),
        (first_word_letter, "", ""),
        (yes_or_no, "Yes, it is.", "yes"),
        (yes_or_no, "No. Yes would be wrong.", "no"),
        (yes_or_no, "The dog is not visible: no", "no"),
        (yes_or_no, "I know nothing of eyes", ""),
        (yes_or_no, "", ""),
    ],
)
def test_letters(parse, answer, found):
    assert parse(answer, CHOICES) == found

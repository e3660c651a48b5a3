"""How far an answer's text agrees with the right ones."""

import re
from collections.abc import Callable, Sequence

CUT_OFF = "..."
"""Ends an answer that was not finished in time, which is therefore no exact match."""


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references, else 0; case and surrounding spaces count."""
    return float(answer in references)


def word_error_rate(answer: str, references: Sequence[str]) -> float:
    """Words to insert, delete or replace, over the words of the reference; of several references the nearest counts.

    Lower is better. Words are what spaces separate, in lower case; `CUT_OFF` is none of them.

    Raises:
        ValueError: if a reference is empty.
    """
    words = answer.removesuffix(CUT_OFF).lower().split()
    return min(_word_errors(words, reference.lower().split()) for reference in references)


def capped_word_error_rate(answer: str, references: Sequence[str]) -> float:
    """`word_error_rate`, at most 1: an answer that never ends is as bad as none, and does not outweigh all others.

    Raises:
        ValueError: if a reference is empty.
    """
    return min(1.0, word_error_rate(answer, references))


def _word_errors(words: list[str], right: list[str]) -> float:
    if not right:
        raise ValueError("a reference without words has no word error rate.")
    costs = list(range(len(right) + 1))  # of turning the words so far into the first 0, 1, 2... right ones
    for number, word in enumerate(words, 1):
        diagonal, costs[0] = costs[0], number
        for at, wanted in enumerate(right, 1):
            best = min(costs[at] + 1, costs[at - 1] + 1, diagonal + (word != wanted))
            diagonal, costs[at] = costs[at], best
    return costs[-1] / len(right)


BETA = 1.2
"""Weight of ROUGE-L's recall against its precision, as coco-caption has it."""

ENDINGS = r"n't\b|'(?:s|re|ve|ll|d|m)\b"
"""Of contractions, each a word of its own."""

WORD = re.compile(rf"{ENDINGS}|\w+(?:[-.,/]\w+)*|[%$&/\\]")
"""Punctuation is none."""


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """ROUGE-L of coco-caption, by which AVSD is scored: the longest common subsequence of words, as F-measure.

    Precision and recall are those of the references where each is highest. Words are in lower case, contractions are
    two (`is n't`), and punctuation is left out, as by the tokenizer of the Penn Treebank. `CUT_OFF` is no word.

    Source: Lin, ROUGE (2004), section 3; https://github.com/salaniz/pycocoevalcap, rouge and tokenizer.

    Raises:
        ValueError: if there is no reference with a word.
    """
    words, right = _words(answer), [found for found in map(_words, references) if found]
    if not right:
        raise ValueError("a reference without words has no ROUGE-L.")
    if not words:
        return 0.0
    common = [_common_subsequence(words, reference) for reference in right]
    precision = max(common) / len(words)
    recall = max(n / len(reference) for n, reference in zip(common, right, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _words(text: str) -> list[str]:
    text = text.lower().replace("\u2019", "'").replace("cannot", "can not")
    return WORD.findall(re.sub(ENDINGS, r" \g<0>", text))


def _common_subsequence(words: list[str], others: list[str]) -> int:
    """The length of the longest one."""
    longest = [0] * (len(others) + 1)  # of the words so far and the first 0, 1, 2... others
    for word in words:
        diagonal = 0
        for at, other in enumerate(others, 1):
            diagonal, longest[at] = longest[at], max(longest[at - 1], longest[at], diagonal + (word == other))
    return longest[-1]


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": exact_match,  # of what a task reads out of an answer
    "capped_word_error_rate": capped_word_error_rate,
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "word_error_rate": word_error_rate,
}
"""By name, as `Task.metric` gives it."""

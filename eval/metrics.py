"""How far an answer's text agrees with the right ones."""

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


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "word_error_rate": word_error_rate,
}
"""By name, as `Task.metric` gives it."""

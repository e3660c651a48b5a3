"""Answers of SQuAD out of logits, and how they are scored.

Rajpurkar et al. 2016 (arXiv 1606.05250, section 6.1) and 2018 (arXiv 1806.03822); the normalisation and the treatment
of questions without an answer are those of the official script, `evaluate-v2.0.py`. Spans are chosen as in BERT (Devlin
et al. 2019, section 4.3), but among all spans, not only those of the 20 best starts and ends.
"""

import collections
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from models.errors import UserError
from train.mergenet.text import Questions, context_tokens

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation and English articles, with single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 if the answer is one of the accepted ones; where there are none, if it is empty."""
    return float(any(normalised(answer) == normalised(other) for other in _accepted(accepted)))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the answer's words, for the accepted answer that suits best."""
    return max(_overlap(normalised(answer).split(), normalised(other).split()) for other in _accepted(accepted))


def evaluate(answers: Mapping[str, str], accepted: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Percentages over all questions: `exact` and `f1`; also over those with an answer and those without.

    Args:
        answers: by the question's id; empty for "there is no answer".
        accepted: accepted answers by question; none where there is no answer.

    Raises:
        UserError: if a question has no entry among the answers, or there are no questions.
    """
    if missing := accepted.keys() - answers.keys():
        raise UserError(f"{len(missing)} questions are not answered ({min(missing)!r} is one); answer them all.")
    if not accepted:
        raise UserError("There are no questions to score; give at least one.")
    groups = {
        "": list(accepted),
        "has_answer_": [key for key in accepted if accepted[key]],
        "no_answer_": [key for key in accepted if not accepted[key]],
    }
    return {
        f"{group}{name}": 100 * float(np.mean([score(answers[key], accepted[key]) for key in keys]))
        for group, keys in groups.items()
        if keys
        for name, score in (("exact", exact_match), ("f1", f1))
    }


def answer_texts(
    questions: Questions,
    start: Float[np.ndarray, "n T"],
    end: Float[np.ndarray, "n T"],
    *,
    longest: int = 30,
    null_threshold: float | None = 0.0,
) -> dict[str, str]:
    """The best answer to each question, by its id.

    Args:
        questions: the rows that the model has read.
        start: logits of the first token of the answer.
        end: of the last one.
        longest: tokens of the longest answer.
        null_threshold: by how much "no answer" (the logits of [CLS], least over the windows) must exceed the best
            span to be given; None where every question has an answer.
    """
    of_context = context_tokens(questions.batch)
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(questions.ids)
    null = np.full(len(questions.ids), np.inf)
    for i, row in enumerate(questions.batch.row.tolist()):
        null[row] = min(null[row], float(start[i, 0]) + float(end[i, 0]))
        score, first, last = best_span(
            np.where(of_context[i], start[i], -np.inf), np.where(of_context[i], end[i], -np.inf), longest
        )
        if score > best[row][0]:
            offsets = questions.batch.offsets[i]
            best[row] = (score, questions.contexts[row][offsets[first, 0] : offsets[last, 1]])
    return {
        key: "" if null_threshold is not None and null[row] - best[row][0] > null_threshold else best[row][1]
        for row, key in enumerate(questions.ids)
    }


def best_span(start: Float[np.ndarray, " T"], end: Float[np.ndarray, " T"], longest: int) -> tuple[float, int, int]:
    """The greatest start[i] + end[j] with i <= j < i + longest, then i and j; the shortest and first among equals."""
    best = (-np.inf, 0, 0)
    for more in range(min(longest, len(start))):
        scores = start[: len(start) - more] + end[more:]
        i = int(np.argmax(scores))
        if scores[i] > best[0]:
            best = (float(scores[i]), i, i + more)
    return best


def _accepted(answers: Sequence[str]) -> Sequence[str]:
    """As the official script has it: answers of nothing but articles and punctuation do not count."""
    return [answer for answer in answers if normalised(answer)] or [""]


def _overlap(words: list[str], other: list[str]) -> float:
    if not words or not other:
        return float(words == other)
    common = sum((collections.Counter(words) & collections.Counter(other)).values())
    return 2 * common / (len(words) + len(other))

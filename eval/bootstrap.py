"""Means over clips with bootstrap intervals, paired differences between policies, and many of them at once.

Questions of one clip are not independent, so clips are drawn, not questions (cluster bootstrap: Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, sections 8 and 13.3). A mean is the ratio of sums over clips.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95

Scores = Mapping[str, Sequence[float]]
"""By clip, the scores of its questions."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, with its percentile interval.

    Attributes:
        value: over all questions.
        low: lower end of the interval; NaN for a single clip.
        high: upper end.
        clips: how many were drawn from.
        p: probability, two-sided, of a difference so far from 0 if there were none; None for a mean.
    """

    value: float
    low: float
    high: float
    clips: int
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Rounded; an interval that is not known is null."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if key != "p" or value is not None}
        return {key: None if math.isnan(value) else round(value, 5) for key, value in found.items()}


def mean(scores: Scores, seed: int = 0) -> Estimate:
    """The mean of all scores.

    Raises:
        ValueError: if there are none, or one is not finite.
    """
    totals, counts = _sums(scores)
    low, high = np.quantile(_ratios(totals, counts, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    if len(totals) == 1:
        low = high = math.nan
    return Estimate(float(totals.sum() / counts.sum()), low, high, len(totals))


def difference(scores: Scores, other: Scores, seed: int = 0) -> Estimate:
    """The mean of `scores` less that of `other`, over the clips that both have, which are drawn together.

    Raises:
        ValueError: if they have no clip in common, or a clip has other questions on both sides.
    """
    both = [clip for clip in scores if clip in other]
    if any(len(scores[clip]) != len(other[clip]) for clip in both):
        raise ValueError("paired scores need the same questions about each clip on both sides.")
    return mean_of_differences({clip: np.subtract(scores[clip], other[clip]).tolist() for clip in both}, seed)


def mean_of_differences(differences: Scores, seed: int = 0) -> Estimate:
    """The mean of differences, such as of differences, with its probability under no difference.

    The probability is that of the interval which just reaches 0, at least 1 / `RESAMPLES`; 1 if nothing ever differs.
    """
    found = mean(differences, seed)
    drawn = _ratios(*_sums(differences), seed)
    tail = min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))
    p = 1.0 if found.clips == 1 else min(1.0, max(2 * tail, 1 / RESAMPLES))
    return dataclasses.replace(found, p=p)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number (Holm 1979): at most 5 % for any of them to be below .05 by chance."""
    order = np.argsort(probabilities, kind="stable")
    factors = len(order) - np.arange(len(order))
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(np.asarray(probabilities)[order] * factors), 1.0)
    return corrected.tolist()


def _sums(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """By clip the sum of its scores, and their number."""
    asked = [np.asarray(own, np.float64) for own in scores.values() if len(own)]
    if not asked or not all(np.isfinite(own).all() for own in asked):
        raise ValueError("a mean needs one or more scores, all of them finite.")
    return np.array([own.sum() for own in asked]), np.array([own.size for own in asked], np.float64)


def _ratios(totals: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Means over clips that are drawn with replacement: `RESAMPLES` of them."""
    rng, n = np.random.default_rng(seed), len(totals)
    draws = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return (draws @ totals) / (draws @ counts)

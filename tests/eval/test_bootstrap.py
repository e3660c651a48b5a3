"""Intervals against SciPy's bootstrap and Student's t, coverage, and Holm's correction by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from eval.bootstrap import difference, holm, mean, mean_of_differences


def clips(seed: int, n: int, questions: int = 3, spread: float = 0.3) -> dict[str, list[float]]:
    """Scores that agree within a clip."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0.5, spread, n)
    return {f"{i}": (ease[i] + rng.normal(0, 0.1, questions)).tolist() for i in range(n)}


def test_an_interval_is_that_of_scipy():
    scores = clips(0, 60)
    found = mean(scores)
    each = np.array([np.mean(own) for own in scores.values()])
    expected = stats.bootstrap((each,), np.mean, method="percentile", random_state=1, n_resamples=9999)
    interval = expected.confidence_interval
    assert found.value == pytest.approx(each.mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.006)
    assert found.clips == 60 and found.p is None


def test_clips_with_more_questions_weigh_more():
    scores = {"a": [1.0, 1.0, 1.0], "b": [0.0]}
    assert mean(scores).value == 0.75
    assert mean({"a": [1.0, 1.0, 1.0], "none": []}).value == 1.0


def test_a_difference_is_paired():
    """Clips differ more from each other than policies do; SciPy's t test of the same pairs agrees."""
    one = clips(1, 80)
    rng = np.random.default_rng(2)
    other = {clip: [score - 0.02 + rng.normal(0, 0.05) for score in own] for clip, own in one.items()}
    found = difference(one, other)
    pairs = [np.mean(own) - np.mean(other[clip]) for clip, own in one.items()]
    test = stats.ttest_1samp(pairs, 0)
    interval = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.004)
    assert found.p is not None and found.p < 0.01 and test.pvalue < 0.01
    unpaired = mean(one).high - mean(one).low
    assert found.high - found.low < unpaired / 4
    assert difference(other, one).value == pytest.approx(-found.value)


def test_only_clips_that_both_have_are_compared():
    assert difference({"a": [1.0], "b": [1.0]}, {"b": [0.0], "c": [0.0]}).clips == 1
    with pytest.raises(ValueError, match="same questions"):
        difference({"a": [1.0]}, {"a": [1.0, 0.0]})
    with pytest.raises(ValueError, match="one or more scores"):
        difference({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="finite"):
        mean({"a": [math.nan]})


def test_no_difference_is_told_as_such():
    same = difference(clips(3, 20), clips(3, 20))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1.0)
    rng = np.random.default_rng(0)
    chance = [mean_of_differences({f"{i}": [x] for i, x in enumerate(rng.normal(size=40))}, n).p for n in range(100)]
    assert np.mean(np.array(chance) < 0.05) <= 0.12


def test_holm():
    """The example of Holm's steps: smallest times 3, next times 2, never falling."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_as_json():
    found = difference({"a": [1.0], "b": [0.0]}, {"a": [0.0], "b": [0.0]}).as_json()
    assert found["value"] == 0.5 and found["clips"] == 2 and 0 < found["p"] <= 1
    assert mean({"a": [1.0]}).as_json() == {"value": 1.0, "low": None, "high": None, "clips": 1}

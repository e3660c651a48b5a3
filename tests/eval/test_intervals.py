"""Intervals against tables, known sample sizes and simulation."""

import math

import numpy as np
import pytest

from eval.intervals import Interval, detectable, mean_interval, paired_difference


def test_by_hand() -> None:
    found = mean_interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    # The table of Student's t has 4.303 for two degrees of freedom; the standard deviation is sqrt(7/3).
    assert found.half_width == pytest.approx(4.303 * math.sqrt(7 / 9), rel=1e-4)
    assert (found.n, found.level) == (3, 0.95) and not found.excludes_zero
    narrow = mean_interval([1.0, 2.0, 4.0], 0.8)
    assert narrow.half_width == pytest.approx(1.886 * math.sqrt(7 / 9), rel=1e-3) and narrow.excludes_zero


def test_pairs_cancel_what_they_share() -> None:
    seeds = np.array([10.0, 20.0, 30.0, 40.0])
    gain = np.array([0.9, 1.1, 1.0, 1.2])
    found = paired_difference((seeds + gain).tolist(), seeds.tolist())
    assert found.mean == pytest.approx(1.05)
    assert found.half_width == pytest.approx(3.182 * gain.std(ddof=1) / 2, rel=1e-3)
    assert found.excludes_zero and not mean_interval(seeds - 25).excludes_zero
    assert str(found) == "+1.0500 ± 0.2054"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(3.0, 2.0, (2000, 4))
    held = [abs(found.mean - 3.0) <= found.half_width for found in (mean_interval(row, 0.9) for row in draws)]
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_one_value_shows_nothing() -> None:
    found = mean_interval([0.5])
    assert found.mean == 0.5 and math.isnan(found.half_width) and not found.excludes_zero
    assert math.isnan(detectable(found)) and str(found) == "+0.5000 ± ?"


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (0.8, 15), (0.2, 199)])
def test_detectable_gives_known_sample_sizes(effect: float, n: int) -> None:
    """Pairs that a two-sided t test at 5 % needs for 80 % power (Cohen's d 0.5, 0.8, 0.2: 34, 15, 199)."""
    assert detectable(_spread_one(n)) <= effect < detectable(_spread_one(n - 1))


def _spread_one(n: int) -> Interval:
    """The interval of n values of standard deviation 1."""
    values = np.random.default_rng(n).normal(size=n)
    return mean_interval((values / values.std(ddof=1)).tolist())


def test_detectable_with_three_seeds_by_simulation() -> None:
    rng = np.random.default_rng(1)
    effect = detectable(_spread_one(3))
    shown = [mean_interval(row).excludes_zero for row in rng.normal(effect, 1.0, (4000, 3))]
    assert effect > 3 and np.mean(shown) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_interval([]), "needs one or more finite values"),
        (lambda: mean_interval([1.0, math.nan]), "needs one or more finite values"),
        (lambda: mean_interval([1.0, 2.0], 95), "level must lie between 0 and 1, not 95"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "as many on both sides, not 2 and 1"),
        (lambda: detectable(mean_interval([1.0, 2.0]), 1.0), "power must be at least 0.5 and below 1, not 1.0"),
    ],
)
def test_what_cannot_be(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()

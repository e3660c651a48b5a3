"""Intervals for experiments with few seeds: means, paired differences, and what such a difference could have shown."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval by Student's t.

    Attributes:
        mean: of the values.
        half_width: the interval reaches from mean - half_width to mean + half_width; NaN for a single value.
        n: how many values.
        level: of confidence.
    """

    mean: float
    half_width: float
    n: int
    level: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; never of a single value."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        """As `+0.0123 ± 0.0045`."""
        spread = "?" if math.isnan(self.half_width) else f"{self.half_width:.4f}"
        return f"{self.mean:+.4f} ± {spread}"


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> Interval:
    """The mean of independent values with its interval.

    Raises:
        ValueError: if there are none, one is not finite, or the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}.")
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"An interval needs one or more finite values, not {values}.")
    n = found.size
    error = found.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return Interval(float(found.mean()), float(_quantile(level, n) * error), n, level)


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, level: float = 0.95
) -> Interval:
    """The mean of a - b, where `a[i]` and `b[i]` belong together (such as by their seed), with its interval.

    Raises:
        ValueError: if there are not as many of one as of the other; see also `mean_interval`.
    """
    if len(a) != len(b):
        raise ValueError(f"Paired values must be as many on both sides, not {len(a)} and {len(b)}.")
    return mean_interval(np.subtract(a, b, dtype=np.float64).tolist(), level)


def detectable(interval: Interval, power: float = 0.8) -> float:
    """The least true difference above zero that so many values of this spread would show with this probability.

    "Show" means that the interval lies above zero. From the noncentral t distribution; the observed spread is taken
    for the true one. NaN for a single value.

    Raises:
        ValueError: if the power is not between 0.5 and 1.
    """
    if not 0.5 <= power < 1:
        raise ValueError(f"power must be at least 0.5 and below 1, not {power}.")
    n = interval.n
    if n < 2:
        return math.nan
    bound = _quantile(interval.level, n)
    highest = bound + float(stats.t.ppf((1 + power) / 2, n - 1)) + 1  # in standard errors, and surely enough
    shift: Any = optimize.brentq(lambda shift: float(stats.nct.sf(bound, n - 1, shift)) - power, 0.0, highest)
    return shift * interval.half_width / bound


def _quantile(level: float, n: int) -> float:
    """Half the width of the interval in standard errors."""
    return float(stats.t.ppf((1 + level) / 2, n - 1)) if n > 1 else math.nan

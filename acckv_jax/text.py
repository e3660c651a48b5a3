"""Policies that keep text whole share one check."""

import numpy as np

from acckv_jax.budget import Budget, TokenCounts, slots_of


def check_text_fits(budget: Budget, counts: TokenCounts, at_least: np.ndarray | int = 0) -> None:
    """Checks that the text and `at_least` further slots fit into the budget of every row.

    Raises:
        ValueError: naming the row and the smallest possible budget.
    """
    need = counts.text + at_least
    for row, (length, slots) in enumerate(zip(counts.length.tolist(), need.tolist(), strict=True)):
        have = slots_of(budget, length)
        if have < slots:
            raise ValueError(
                f"budget {budget} keeps {have} of the {length} prompt tokens of row {row}, but text is kept whole and "
                f"needs {slots} slots: the smallest possible budget is {slots} (or the fraction "
                f"{_smallest_fraction(slots, length):g})."
            )


def _smallest_fraction(slots: int, length: int) -> float:
    """A fraction of two decimals or more, rounded up, that keeps at least `slots` of `length` tokens."""
    for digits in range(2, 10):
        fraction = float(np.ceil(slots / length * 10**digits) / 10**digits)
        if slots_of(fraction, length) >= slots and fraction <= 1.0:
            return fraction
    return 1.0

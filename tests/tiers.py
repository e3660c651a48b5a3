"""Which cases of a parametrised test run in the quick tier; the others are `complete` (docs/testing.md)."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

REPRESENTATIVES = ("full", "h2o_every_4", "snapkv", "acckv_plus", "quantized_h2o_every_4")
"""Policies of the contract that stand for all: nothing dropped, evicting, scores, merged slots, other storage."""


def quick_first(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of which the first `count` are quick."""
    return [value if at < count else _complete(value) for at, value in enumerate(values)]


def quick_only(values: Iterable[Any], quick: Collection[Any] = REPRESENTATIVES) -> list[Any]:
    """Parameters of which those in `quick` are quick."""
    return [value if value in quick else _complete(value) for value in values]


def _complete(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.complete)

"""Which cases of a parametrised test run in the quick tier; the others are `complete` (docs/testing.md)."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

REPRESENTATIVES = ("full", "h2o_every_4", "snapkv", "acckv_plus", "quantized_h2o_every_4")
"""Policies of the contract that stand for all: nothing dropped, evicting, scores, merged slots, other storage."""

ONE_OF_EACH = (
    *("random", "streaming_llm", "h2o", "acckv", "omni_fit", "knorm", "keydiff", "tova", "mix_kv", "look_m", "fastv"),
    *("protected_snapkv", "per_layer_acckv_plus", "quantized_4_snapkv", "ada_kv_snapkv", "critical_kv_snapkv"),
    *("smoothed_h2o_every_4", "clie_snapkv"),
    *("random", "streaming_llm", "h2o", "acckv", "knorm", "protected_snapkv", "per_layer_acckv_plus"),
    *("pyramid_kv", "expected_attention", "r_kv", "kvzip", "vl_cache", "mada_kv", "omni_mem"),
)
"""With `REPRESENTATIVES`, every policy and wrapper of the contract once; the rest of it are further options."""


def quick_first(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of which the first `count` are quick."""
    return [value if at < count else _complete(value) for at, value in enumerate(values)]


def quick_only(values: Iterable[Any], quick: Collection[Any] = REPRESENTATIVES) -> list[Any]:
    """Parameters of which those in `quick` are quick."""
    return [value if value in quick else _complete(value) for value in values]


def _complete(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return pytest.param(*values, marks=pytest.mark.complete)

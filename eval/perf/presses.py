"""What kvpress calls the policies that it has too: each press with the options of a policy of ours."""

import re
from collections.abc import Callable
from typing import Any

from acckv_jax import POLICIES, WRAPPERS

PRESSES: dict[str, Callable[[Any, Any, float], Any]] = {
    "full": lambda kvpress, policy, ratio: None,
    "streaming_llm": lambda kvpress, policy, ratio: kvpress.StreamingLLMPress(ratio, n_sink=policy.sinks),
    "snapkv": lambda kvpress, policy, ratio: kvpress.SnapKVPress(ratio, policy.window_size, policy.kernel_size),
    "knorm": lambda kvpress, policy, ratio: kvpress.KnormPress(ratio),
    "keydiff": lambda kvpress, policy, ratio: kvpress.KeyDiffPress(ratio),
    "tova": lambda kvpress, policy, ratio: kvpress.TOVAPress(ratio),
    "pyramid_kv": lambda kvpress, policy, ratio: kvpress.PyramidKVPress(
        ratio, policy.window_size, policy.kernel_size, policy.beta
    ),
    "expected_attention": lambda kvpress, policy, ratio: kvpress.ExpectedAttentionPress(
        ratio, policy.future_positions, policy.sinks, policy.covariance, policy.value_norm, policy.epsilon
    ),
    "ada_kv(snapkv)": lambda kvpress, policy, ratio: kvpress.AdaKVPress(
        PRESSES["snapkv"](kvpress, policy.inner, ratio), policy.floor
    ),
    "critical_kv(snapkv)": lambda kvpress, policy, ratio: kvpress.CriticalKVPress(
        PRESSES["snapkv"](kvpress, policy.inner, ratio), policy.epsilon, policy.first_share
    ),
}
"""By name of the policy: its press, made from the module kvpress, the policy, and the share of slots to drop.

Left out are policies whose rules differ: kvpress draws other random numbers, and its ObservedAttentionPress divides
H2O's column sums by the number of rows and keeps no recent tokens.
"""


def shared_policies() -> tuple[str, ...]:
    """Names of the policies that both have."""
    return tuple(name for name in PRESSES if {*POLICIES, *WRAPPERS}.issuperset(re.findall(r"\w+", name)))


def compression_ratio(slots: int, tokens: int) -> float:
    """The share to drop with which kvpress keeps `slots` of `tokens` tokens: it rounds what is left down."""
    return max(0.0, 1 - (slots + 1e-3) / tokens)

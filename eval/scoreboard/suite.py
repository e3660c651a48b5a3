"""What a scoreboard asks: tasks, how many of their examples, and which policies at which budgets."""

import dataclasses

from acckv_jax import POLICIES

WRAPPED = ("protected(random)", "protected(h2o)", "ada_kv(snapkv)", "critical_kv(snapkv)", "smoothed(snapkv)")
"""Beside every policy: random tokens behind the same protection as StreamingLLM's, and wrappers of the best rival."""
ABLATIONS = (
    "acckv:rows=text",
    "acckv:merge=none",
    "acckv:gate=none",
    "acckv:split=proportional",
    "acckv:cross_modal_merge=true",
)
"""AccKV's parts one by one: what the column sums read, merging, the gate, the split, and merging across modalities."""
CONTROLS = ("random:only=video", "random:only=audio")
"""What is left without one of the modalities."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task of a scoreboard.

    Attributes:
        task: a name of `eval.tasks.registry`.
        examples: how many, beginning with `first`.
        first: number of the first example: tuning uses others than the report.
        policies: beside the full cache.
        budgets: as `eval.benchmark` takes them.
    """

    task: str
    examples: int
    first: int = 0
    policies: tuple[str, ...] = (*(name for name in POLICIES if name != "full"), *WRAPPED)
    budgets: tuple[str, ...] = ("0.5", "0.2", "0.1", "0.05")


SUITES: dict[str, tuple[Entry, ...]] = {
    "default": (
        Entry("clips", 200),
        Entry("clips", 200, policies=(*ABLATIONS, *CONTROLS), budgets=("0.2", "0.1")),
    ),
    "smoke": (Entry("clips", 2, policies=("random", "snapkv", "acckv"), budgets=("0.2",)),),
}
"""By name. An entry may name the task of another one: both are lines of one table."""

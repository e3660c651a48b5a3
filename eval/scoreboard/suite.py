"""What a scoreboard asks: tasks, how many of their examples, and which policies at which budgets."""

import dataclasses

from acckv_jax import POLICIES

WRAPPED = (
    "protected(random):first=4,last=4",
    "protected(h2o):first=4,last=4",
    "ada_kv(snapkv)",
    "critical_kv(snapkv)",
    "smoothed(snapkv)",
)
"""Beside every policy: random tokens, and H2O's, behind a protection that fits into every budget; wrappers of the best
rival."""
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


RIVALS = (*(name for name in POLICIES if name != "full"), *WRAPPED)
INTEGERS = tuple(f"quantized({name}):bits=4" for name in ("random", "snapkv", "kvzip", "acckv_plus"))
"""Policies whose kept tokens are stored in 4 bits: three times the tokens in as many bytes."""
BEST = "quantized(acckv_plus):bits=4"
"""The default policy, chosen on clips 2000 to 2059."""
HEADLINE = ("random", "snapkv", "acckv", "acckv_plus")
"""Policies that are asked about many clips."""
MUTED = ("random",)
"""Beside the full cache, where the sound or the pictures are left out: both must fall to chance."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task of a scoreboard.

    Attributes:
        task: a name of `eval.tasks.registry`.
        examples: how many, beginning with `first`.
        first: number of the first example: tuning uses others than the report.
        policies: beside the full cache.
        budgets: as `eval.benchmark` takes them.
        title: of its tables; the task's name if it is empty. Entries of one title are lines of one table, about the
            same examples.
    """

    task: str
    examples: int
    first: int = 0
    policies: tuple[str, ...] = RIVALS
    budgets: tuple[str, ...] = ("0.5", "0.2", "0.1", "0.05")
    title: str = ""


SUITES: dict[str, tuple[Entry, ...]] = {
    "default": (
        Entry("clips", 200, budgets=("0.5", "0.2", "0.1")),
        Entry("clips", 200, policies=(*ABLATIONS, *CONTROLS), budgets=("0.2", "0.1")),
        Entry("clips", 200, policies=INTEGERS, budgets=("0.6", "0.3")),
        Entry("long_clips", 100, budgets=("0.05",)),
        Entry("long_clips", 100, policies=INTEGERS, budgets=("0.15",)),
        Entry("transcripts", 40, budgets=("0.2", "0.1")),
        Entry("transcripts", 40, policies=INTEGERS, budgets=("0.3",)),
        Entry("clips", 1000, first=1000, policies=HEADLINE, budgets=("0.1",), title="clips, the main rows"),
        Entry("clips", 1000, first=1000, policies=(BEST,), budgets=("0.3",), title="clips, the main rows"),
        Entry("dialogues_without_sound", 20, policies=MUTED, budgets=("0.2",)),
        Entry("dialogues_without_pictures", 20, policies=MUTED, budgets=("0.2",)),
    ),
    "text": (
        Entry("pass_key", 40, budgets=("0.2", "0.1")),
        Entry("keys", 40, budgets=("0.2", "0.1")),
    ),
    "smoke": (Entry("clips", 2, policies=("random", "snapkv", "acckv"), budgets=("0.2",)),),
}
"""By name: `text` asks SmolLM2, the others SmolAV."""

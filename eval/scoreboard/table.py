"""From answers to a scoreboard: means with intervals, bytes, paired differences, by task, turn and kind of question.

First questions and later ones are never mixed: a policy that reads attention has seen the first question when it
prunes, and none of the later ones.
"""

import collections
import csv
import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from eval.bootstrap import Estimate, difference, holm, mean
from eval.results import Row, Variant

Turn = Literal["first", "later"]
ALL = "all"
"""The group that all questions of a turn belong to."""
FULL, RANDOM = "full", "random"
EQUAL = 0.05
"""Caches whose bytes differ by no more than this part are of equal size."""
MARGINS: Mapping[Turn, float] = {"first": 0.01, "later": 0.03}
"""How much worse than the full cache a policy may be and still counts as not inferior, by turn; of error rates, .03."""


@dataclasses.dataclass(frozen=True)
class Part:
    """What a line of the scoreboard is about.

    Attributes:
        task: its name.
        metric: of its scores.
        lower_is_better: whether it counts errors.
        turn: first or later questions on a cache.
        group: kind of question, or `ALL`.
    """

    task: str
    metric: str
    lower_is_better: bool
    turn: Turn
    group: str

    @property
    def margin(self) -> float:
        """See `MARGINS`."""
        return MARGINS["later"] if self.lower_is_better else MARGINS[self.turn]


@dataclasses.dataclass(frozen=True)
class Line:
    """A policy at a budget in one part.

    Attributes:
        part: what it is about.
        policy: as asked for.
        budget: as asked for.
        cache_bytes: mean of the live bytes of one clip's cache, metadata included; None if it was not measured.
        share: of the full cache's bytes; likewise.
        score: mean over questions.
        to_full: difference to the full cache; None for that itself.
        to_random: difference to a random choice at the same budget; None without one.
    """

    part: Part
    policy: str
    budget: float | int
    cache_bytes: float | None
    share: float | None
    score: Estimate
    to_full: Estimate | None
    to_random: Estimate | None

    @property
    def not_inferior(self) -> bool | None:
        """Whether the interval of the difference to the full cache lies above minus the margin; None if unknown."""
        if self.to_full is None or self.to_full.low != self.to_full.low:
            return None
        worst = self.to_full.high if self.part.lower_is_better else -self.to_full.low
        return worst < self.part.margin


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired difference between two policies at one budget, or in as many bytes.

    Attributes:
        part: what it is about.
        policy: the one that is compared with all others.
        budget: of this policy.
        rival: the other.
        rival_budget: of the rival; another one where integers keep more tokens in as many bytes.
        gain: of the policy over its rival, positive where it is better.
        corrected: its probability, corrected for all rivals of this policy, part and budget (Holm).
    """

    part: Part
    policy: str
    budget: float | int
    rival: str
    rival_budget: float | int
    gain: Estimate
    corrected: float


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of one task, about the examples that every policy has answered.

    Attributes:
        task: its name.
        metric: of its scores.
        lower_is_better: whether it counts errors.
        rows: by policy and budget.
    """

    task: str
    metric: str
    lower_is_better: bool
    rows: Mapping[Variant, Sequence[Row]]

    @classmethod
    def of(cls, task: str, metric: str, rows: Iterable[Row], *, lower_is_better: bool = False) -> "Answers":
        """Sorts rows of a file of answers."""
        sorted_rows: dict[Variant, list[Row]] = collections.defaultdict(list)
        for row in rows:
            if "error" not in row:
                sorted_rows[Variant(row["policy"], f"{row['budget']}")].append(row)
        common = set.intersection(*({row["example"] for row in own} for own in sorted_rows.values()))
        kept = {v: [row for row in own if row["example"] in common] for v, own in sorted_rows.items()}
        return cls(task, metric, lower_is_better, kept)

    def parts(self) -> list[Part]:
        """All turns and groups, all questions of a turn first."""
        rows = next(iter(self.rows.values()), [])
        both: tuple[Turn, ...] = ("first", "later")
        turns: list[Turn] = [turn for turn in both if any(_turn(row) == turn for row in rows)]
        groups = list(dict.fromkeys(row["group"] for row in rows))
        named = [ALL, *groups] if len(groups) > 1 else [ALL]
        of = (self.task, self.metric, self.lower_is_better)
        return [Part(*of, turn, group) for turn in turns for group in named]

    def scores(self, variant: Variant, part: Part) -> dict[str, list[float]]:
        """By example, the scores of its questions of a part, in their order."""
        found: dict[str, list[float]] = collections.defaultdict(list)
        for row in sorted(self.rows[variant], key=lambda row: row["question"]):
            if _turn(row) == part.turn and part.group in (ALL, row["group"]):
                found[row["example"]].append(row["score"])
        return dict(found)

    def cache_bytes(self, variant: Variant) -> float | None:
        """Mean over examples."""
        by_example = {row["example"]: row["bytes"] for row in self.rows[variant]}
        sizes = [size for size in by_example.values() if size is not None]
        return float(np.mean(sizes)) if sizes and len(sizes) == len(by_example) else None

    def equal_bytes(self, variant: Variant, other: Variant) -> bool:
        """Whether both are known to take as many bytes, but for 5 %."""
        one, two = self.cache_bytes(variant), self.cache_bytes(other)
        return one is not None and two is not None and abs(one - two) <= EQUAL * max(one, two)


def _turn(row: Row) -> Turn:
    return "first" if row["turn"] == 1 else "later"


def lines_of(answers: Answers) -> list[Line]:
    """The scoreboard of a task: the full cache first, then as the policies were asked.

    Raises:
        ValueError: if the full cache is not among the policies.
    """
    full = next((variant for variant in answers.rows if variant.policy == FULL), None)
    if full is None:
        raise ValueError(f"{answers.task}: a scoreboard needs answers of the full cache.")
    whole = answers.cache_bytes(full)
    found = []
    for part in answers.parts():
        of_full = answers.scores(full, part)
        for variant in answers.rows:
            scores, size = answers.scores(variant, part), answers.cache_bytes(variant)
            control = Variant(RANDOM, variant.budget)
            compared = control in answers.rows and variant not in (control, full)
            found.append(
                Line(
                    part,
                    variant.policy,
                    budget_of(variant),
                    size,
                    size / whole if size is not None and whole else None,
                    mean(scores),
                    None if variant == full else difference(scores, of_full),
                    difference(scores, answers.scores(control, part)) if compared else None,
                )
            )
    return found


def comparisons_of(answers: Answers, policies: Iterable[str], rivals: Iterable[str] | None = None) -> list[Comparison]:
    """Each of some policies against all others (or the rivals named), in every part: at the same budget, and at those
    budgets at which they take as many bytes.
    """
    chosen = list(policies)
    found: list[Comparison] = []
    for part, own in itertools.product(answers.parts(), answers.rows):
        if own.policy not in chosen:
            continue
        others = [
            other
            for other in answers.rows
            if other.policy not in (FULL, own.policy)
            and (rivals is None or other.policy in rivals)
            and (other.budget == own.budget or answers.equal_bytes(own, other))
        ]
        scores, gains = answers.scores(own, part), []
        for other in others:
            theirs = answers.scores(other, part)
            gains.append(difference(theirs, scores) if part.lower_is_better else difference(scores, theirs))
        corrected = holm([gain.p or 0.0 for gain in gains])
        found += [
            Comparison(part, own.policy, budget_of(own), other.policy, budget_of(other), gain, p)
            for other, gain, p in zip(others, gains, corrected, strict=True)
        ]
    return found


def budget_of(variant: Variant) -> float | int:
    """The budget as a number: a fraction, or slots."""
    return float(variant.budget) if "." in variant.budget or "e" in variant.budget else int(variant.budget)


def as_json(item: Line | Comparison) -> dict[str, Any]:
    """A line or a comparison with flat names, ready for JSON."""
    found = dataclasses.asdict(item.part)
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if field.name != "part":
            found[field.name] = value.as_json() if isinstance(value, Estimate) else value
    if isinstance(item, Line):
        found["not_inferior"] = item.not_inferior
    return found


COLUMNS = (
    "task", "metric", "turn", "group", "policy", "budget", "cache_bytes", "share", "clips", "score", "low", "high",
    "to_full", "to_full_low", "to_full_high", "not_inferior", "to_random", "to_random_low", "to_random_high",
)  # fmt: skip


def as_csv(lines: Iterable[Line]) -> str:
    """The lines as a table of comma-separated values."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        cells: dict[Any, Any] = {key: value for key, value in as_json(line).items() if key in COLUMNS}
        cells |= {"clips": line.score.clips, **_cells("", line.score, "score")}
        for name, estimate in (("to_full", line.to_full), ("to_random", line.to_random)):
            cells |= _cells(f"{name}_", estimate, name) if estimate else {name: None}
        writer.writerow(cells)
    return file.getvalue()


def _cells(prefix: str, estimate: Estimate, name: str) -> dict[str, Any]:
    found = estimate.as_json()
    return {name: found["value"], f"{prefix}low": found["low"], f"{prefix}high": found["high"]}

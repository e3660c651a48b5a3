"""Accuracy of SmolAV under every cache policy, on the held-out clips of `eval.accuracy`.

    python -m eval.policy_accuracy                     20 clips
    python -m eval.policy_accuracy --clips 200 --out models/smolav/policy_accuracy.json

One question of each group per clip, and a second one, asked after the first was answered, on the cache that was pruned
for the first. An answer counts only if it is exactly the word. This is the task `clips` of `eval.benchmark`, with a
table of its own.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from acckv_jax import POLICIES
from eval import benchmark
from eval.benchmark import Measured
from eval.held_out import GROUPS, MOST
from eval.policies import split_variant
from models import command
from models.errors import UserError
from models.files import write_text

TURNS = {"first": 1, "second": 2}


@dataclasses.dataclass(frozen=True)
class Options:
    """Accuracy under every policy and budget."""

    clips: int = 20
    """Test clips, at most 1000."""
    first: int = 0
    """Number of the first of them: variants are chosen on other clips than they are reported on."""
    budgets: tuple[float, ...] = (0.2, 0.1)
    """Fractions of the prompt to keep."""
    policies: tuple[str, ...] = tuple(name for name in POLICIES if name != "full")
    """Policies; the full cache is always measured."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further variant as POLICY:NAME=VALUE,NAME=VALUE, for ablations; may be repeated."""
    answers: Path | None = None
    """Also keep every answer in this file; the same command then continues a run that was stopped."""
    out: Path | None = None
    """Also write the result as JSON."""


def measure(options: Options, load: benchmark.Loader = benchmark.load_task) -> Measured:
    """Runs the task.

    Raises:
        UserError: on any mistake in the options.
    """
    last = options.first + options.clips
    if options.clips < 1:
        raise UserError(f"--clips must be at least 1, not {options.clips}.")
    if options.first < 0 or last > MOST:
        wanted = f"{options.first} to {last - 1}"
        raise UserError(f"--first and --clips must choose among clips 0 to {MOST - 1}, not {wanted}.")
    for text in options.option:
        if not split_variant(text)[1]:
            raise UserError(f"Variant {text!r} names no option; write POLICY:NAME=VALUE,NAME=VALUE.")
    asked = benchmark.Options(
        "clips",
        policies=(*options.policies, *options.option) or ("full",),
        budgets=tuple(str(budget) for budget in options.budgets),
        examples=options.clips,
        first=options.first,
        out=options.out,
    )
    return benchmark.measure(asked, options.answers, load)


def summary(measured: Measured) -> dict[str, Any]:
    """Accuracy by policy, budget, question and group, ready for JSON."""
    rows = []
    for variant in measured.variants:
        for question, turn in TURNS.items():
            own = [row for row in measured.rows(variant) if row["turn"] == turn]
            hits = {group: [row["score"] for row in own if row["group"] == group] for group in GROUPS}
            rows.append(
                {
                    "policy": variant.policy,
                    "budget": json.loads(variant.budget),
                    "question": question,
                    **{group: {"asked": len(hits[group]), "accuracy": _rounded(hits[group])} for group in GROUPS},
                    "all": _rounded([row["score"] for row in own]),
                }
            )
    return {"clips": len(measured.ids) - len(measured.errors), "rows": rows}


def _rounded(scores: list[float]) -> float | None:
    return round(float(np.mean(scores)), 4) if scores else None


def run(options: Options, load: benchmark.Loader = benchmark.load_task) -> None:
    """Measures, prints a table, and writes the result if asked to; `load` makes the task.

    Raises:
        UserError: on any mistake in the options.
    """
    result = summary(measure(options, load))
    if options.out:
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    table = Table(title=f"{result['clips']} held-out clips, exact answers", padding=(0, 0), pad_edge=False)
    for name in ("policy", "budget", "question", *GROUPS, "all"):
        table.add_column(name, no_wrap=True)
    for row in result["rows"]:
        shown = [f"{row[g]['accuracy']:.3f}" if row[g]["asked"] else "-" for g in GROUPS]
        table.add_row(row["policy"], f"{row['budget']:g}", row["question"], *shown, f"{row['all']:.3f}")
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.policy_accuracy", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True)


if __name__ == "__main__":
    sys.exit(main())

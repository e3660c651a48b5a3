"""Accuracy of SmolAV with the full attention on held-out clips of 10 to 30 seconds.

    python -m eval.accuracy                        100 clips, some minutes on two cores
    python -m eval.accuracy --clips 1000 --out models/smolav/accuracy.json

An answer counts only if greedy decoding gives exactly the word and then stops. This is the task `clips_full` of
`eval.benchmark`, with a table of its own.
"""

import collections
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from eval import benchmark
from eval.held_out import GROUPS, MOST
from eval.metrics import CUT_OFF
from eval.results import Row
from models import command
from models.errors import UserError
from models.files import write_text
from models.smolav.config import LAYOUTS
from models.smolav.params import FOLDER
from train.data.questions import ANSWERS


def summary(rows: Sequence[Row], clips: int) -> dict:
    """Accuracies, chance levels and confusions, ready for JSON.

    Args:
        rows: answers to the questions of `eval.held_out.as_asked`.
        clips: about how many clips.
    """

    def of(chosen: list[Row]) -> dict[str, float | int]:
        accuracy = float(np.mean([row["score"] for row in chosen])) if chosen else float("nan")
        guess = float(np.mean([1 / row["labels"]["candidates"] for row in chosen])) if chosen else float("nan")
        error = (accuracy * (1 - accuracy) / max(len(chosen), 1)) ** 0.5
        return {
            "questions": len(chosen),
            "accuracy": round(accuracy, 4),
            "standard_error": round(error, 4),
            "chance_among_ten_words": 0.1,
            "chance_among_the_clips_own": round(guess, 4),
        }

    confusions = {}
    for kind in sorted(set(ANSWERS.values())):
        own = [row for row in rows if row["labels"]["answer"] == kind]
        pairs = collections.Counter((row["references"][0], row["answer"].removesuffix(CUT_OFF)) for row in own)
        names = sorted({expected for expected, _ in pairs})
        confusions[kind] = {a: {b: n for (x, b), n in sorted(pairs.items()) if x == a} for a in names}
    in_layout = {layout: [row for row in rows if row["labels"]["layout"] == layout] for layout in LAYOUTS}
    return {
        "clips": clips,
        "groups": {group: of([row for row in rows if row["group"] == group]) for group in GROUPS},
        "layouts": {
            layout: {group: of([row for row in own if row["group"] == group])["accuracy"] for group in GROUPS}
            for layout, own in in_layout.items()
        },
        "confusions": confusions,
    }


def print_summary(console: Console, result: dict) -> None:
    """Prints the accuracies as a table, then the commonest confusions."""
    table = Table("questions about", "asked", "right", "chance", *LAYOUTS, title=f"{result['clips']} held-out clips")
    for group, row in result["groups"].items():
        right = f"{row['accuracy']:.3f} ± {row['standard_error']:.3f}"
        chance = f"{row['chance_among_ten_words']:.2f} / {row['chance_among_the_clips_own']:.2f}"
        layouts = [f"{result['layouts'][layout][group]:.3f}" for layout in LAYOUTS]
        table.add_row(group, str(row["questions"]), right, chance, *layouts)
    console.print(table)
    console.print("chance: among all ten words of the kind / among the things of that kind in the clip")
    for kind, rows in result["confusions"].items():
        wrong = collections.Counter({(a, b): n for a, row in rows.items() for b, n in row.items() if a != b})
        console.print(f"{kind}: " + ", ".join(f"{a} as {b} {n}" for (a, b), n in wrong.most_common(6)), markup=False)


@dataclasses.dataclass(frozen=True)
class Options:
    """Accuracy on held-out clips."""

    clips: int = 100
    """How many test clips, at most 1000."""
    model: Path = FOLDER
    """Folder of an exported SmolAV."""
    answers: Path | None = None
    """Also keep every answer in this file; the same command then continues a run that was stopped."""
    out: Path | None = None
    """Also write the result as JSON."""


def run(options: Options, load: benchmark.Loader = benchmark.load_task) -> None:
    """Measures, prints, and writes the result if asked to; `load` makes the task.

    Raises:
        UserError: on a bad number of clips, model or file.
    """
    if not 1 <= options.clips <= MOST:
        raise UserError(f"--clips must be 1 to {MOST}, not {options.clips}.")
    asked = benchmark.Options("clips_full", examples=options.clips, model=str(options.model), out=options.out)
    measured = benchmark.measure(asked, options.answers, load)
    [full] = measured.variants
    result = summary(measured.rows(full), options.clips - len(measured.errors))
    if options.out:
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    print_summary(Console(), result)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.accuracy", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True)


if __name__ == "__main__":
    sys.exit(main())

"""Compares cache policies on several tasks: a table of scores, bytes and paired differences, and a report to look at.

    python -m eval.scoreboard --out scoreboard
    python -m eval.scoreboard --suite smoke --out runs/scoreboard

The folder gets TASK.jsonl (every answer, which the same command continues), scoreboard.json, scoreboard.csv and
report.html.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

import models
from acckv_jax import CachePolicy
from eval import benchmark
from eval.benchmark import Measured
from eval.held_out import HeldOutTask
from eval.scoreboard.about import about_run
from eval.scoreboard.claims import claims_of, grows_with_depth, video_weights
from eval.scoreboard.kept import kept_by, overlap
from eval.scoreboard.report import write_report
from eval.scoreboard.retention import CLIP, QUESTION, clip_retention
from eval.scoreboard.suite import BEST, SUITES, Entry
from eval.scoreboard.table import FULL, Answers, Line, as_csv, as_json, comparisons_of, lines_of
from eval.tasks.interface import Task
from eval.tasks.registry import TASKS
from models import command
from models.devices import Devices, OnDevices, is_first
from models.errors import UserError
from models.files import write_text

FOCUS = ("acckv", "acckv_plus", BEST)
"""Policies that are compared with all others."""
LOOKED_AT, OVERLAP_EXAMPLES, WEIGHED = "0.2", 5, 50
"""Budget at which selections are compared and shown, examples of which they are, and of which layers are weighed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """A scoreboard of cache policies."""

    out: Path = Path("scoreboard")
    """Folder of the answers and the result."""
    suite: str = "default"
    """What is asked: default, text (SmolLM2), or smoke, a minute of it."""
    examples: int | None = None
    """How many examples of each task; default: as the suite says."""
    policies: tuple[str, ...] | None = None
    """Only these, as `eval.benchmark` takes them."""
    budgets: tuple[str, ...] | None = None
    """Only these."""
    devices: OnDevices = Devices()


def entries_of(options: Options) -> list[Entry]:
    """What is to be asked.

    Raises:
        UserError: if there is no such suite.
    """
    if options.suite not in SUITES:
        raise UserError(f"Unknown suite {options.suite!r}; choose one of {', '.join(SUITES)}.")
    changes: dict[str, Any] = {name: getattr(options, name) for name in ("examples", "policies", "budgets")}
    given = {name: value for name, value in changes.items() if value is not None}
    return [dataclasses.replace(entry, **given) for entry in SUITES[options.suite]]


def measure(options: Options, load: benchmark.Loader = benchmark.load_task) -> list[Answers]:
    """Asks what the folder does not hold yet; the answers of each task, once.

    Raises:
        UserError: on any mistake in the options or the folder.
    """
    found = []
    for (task, first, examples, title), entries in tables_of(entries_of(options)).items():
        (policies, budgets), *also = ((entry.policies, entry.budgets) for entry in entries)
        asked = benchmark.Options(task, policies, budgets, examples, first, devices=options.devices)
        measured = benchmark.measure(asked, options.out / f"{task}.jsonl", load, also)
        found.append(answers_of(title or task, measured))
        jax.clear_caches()  # programs of a hundred variants fill most of the 65,530 mappings that a process may have
    return found


def tables_of(entries: Iterable[Entry]) -> dict[tuple[str, int, int, str], list[Entry]]:
    """Entries of one table by task, first example, number of examples and title: they are asked together.

    Raises:
        ValueError: if entries of one title are about other examples.
    """
    tables: dict[tuple[str, int, int, str], list[Entry]] = {}
    for entry in entries:
        tables.setdefault((entry.task, entry.first, entry.examples, entry.title), []).append(entry)
    titles = [title or task for task, _, _, title in tables]
    if len(set(titles)) < len(titles):
        raise ValueError(f"Entries of one title must be about the same examples: {', '.join(titles)}.")
    return tables


def answers_of(title: str, measured: Measured) -> Answers:
    """The answers of a table."""
    rows = (row for variant in measured.variants for row in measured.rows(variant))
    return Answers.of(title, measured.metric, rows, lower_is_better="error" in measured.metric)


def weights_by_kind(task: HeldOutTask, examples: int) -> dict[str, list[tuple[str, np.ndarray]]]:
    """W_Vd by layer of the first examples, for their first question about pictures, and about sounds."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {"video": [], "audio": []}
    for id in task.ids[:examples]:
        example = task.example(id)
        for kind, groups in (("video", ("video",)), ("audio", ("spoken words", "instruments"))):
            asked = [one[:1] for one in example.conversations if one[0].group in groups]
            if asked:
                found[kind].append((id, video_weights(task.model, example.prefix.then(task.prompt(asked[0])))))
    return found


def overlaps(task: Task, policies: dict[str, CachePolicy], examples: int) -> list[list[float]]:
    """The overlap of policies' selections, mean over a task's first examples."""
    sums = np.zeros(())
    for id in task.ids[:examples]:
        example = task.example(id)
        question = task.prompt(example.conversations[0][:1])
        sums = sums + overlap([kept for _, kept in kept_by(task.model, example.prefix, question, policies)])
    return (sums / examples).round(4).tolist()


def result_of(answers: list[Answers], command: str) -> tuple[dict[str, Any], list[Line]]:
    """The scoreboard, ready for JSON, and its lines."""
    lines = [line for one in answers for line in lines_of(one)]
    comparisons = [comparison for one in answers for comparison in comparisons_of(one, FOCUS)]
    return {
        "about": about_run(command),
        "lines": [as_json(line) for line in lines],
        "comparisons": [as_json(comparison) for comparison in comparisons],
        "claims": [claim.as_json() for claim in claims_of(answers)],
    }, lines


def run(options: Options, load: benchmark.Loader = benchmark.load_task) -> None:
    """Measures, and writes the folder.

    Raises:
        UserError: on any mistake in the options or the folder.
    """
    entries = entries_of(options)
    with contextlib.suppress(FileExistsError):
        options.out.mkdir(parents=True)
    if not options.out.is_dir():
        raise UserError(f"{options.out} is no folder; name another --out.")
    command.check_output(options.out / "scoreboard.json")
    answers, pictures = measure(options, load), dict[str, str]()
    result, lines = result_of(answers, shlex.join(["python", "-m", "eval.scoreboard", *sys.argv[1:]]))
    first = entries[0]
    kind = TASKS[first.task]
    with options.devices.placed(models.kv_heads(kind.default_model), kind.default_model):
        task = load(first.task, kind.default_model, None)
        built = benchmark.build_policies(first.policies, (LOOKED_AT,), task)
        policies = {variant.policy: policy for variant, policy in built.items() if variant.policy != FULL}
        if isinstance(task, HeldOutTask):
            first_claim = grows_with_depth(weights_by_kind(task, min(first.examples, WEIGHED)))
            result["claims"].insert(0, first_claim.as_json())
        shares = overlaps(task, policies, min(first.examples, OVERLAP_EXAMPLES))
        result["overlap"] = {"budget": float(LOOKED_AT), "policies": list(policies), "shares": shares}
        if isinstance(task, HeldOutTask):
            pictures, shown = clip_retention(task.model, CLIP, QUESTION, policies)
            result["clip"] = {"question": QUESTION, "policies": shown}
    if is_first():
        write_text(options.out / "scoreboard.json", json.dumps(result, indent=1) + "\n")
        write_text(options.out / "scoreboard.csv", as_csv(lines))
        write_report(options.out / "report.html", result, pictures)
    Console().print(f"{options.out / 'report.html'}, scoreboard.json, scoreboard.csv", highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.scoreboard", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True, devices=options.devices)


if __name__ == "__main__":
    sys.exit(main())

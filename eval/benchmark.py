"""Asks a task's questions under cache policies and budgets, and scores the answers.

    python -m eval.benchmark --task clips --policies snapkv 'protected(acckv)' --budgets 0.2 0.1 --examples 100

The full cache is always among the policies. Every answer is written to a file as soon as it is there; the same command
continues a run that was stopped, and asks again what could not be asked. First and later questions on one cache are
counted apart.
"""

import collections
import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jax.sharding import AxisType
from rich.console import Console
from rich.progress import track
from rich.table import Table

from acckv_jax import POLICIES, CachePolicy
from eval import results
from eval.held_back import Said
from eval.intervals import mean_interval
from eval.policies import BudgetError, split_variant
from eval.results import Results, Row, Variant
from eval.tasks.interface import Example, Task
from eval.tasks.registry import TASKS
from models import command
from models.acckv_tau import TAU
from models.devices import Devices, OnDevices, is_first
from models.errors import UserError
from models.files import write_text
from models.policies import build_policy, parse_budget

MEAN = ("asked", "score", "half_width")
WIDE = 6
"""Groups that have columns of their own; more have rows."""

Policies = dict[Variant, CachePolicy]
Loader = Callable[[str, str, Path | None], Task]


@dataclasses.dataclass(frozen=True)
class Options:
    """A benchmark of cache policies."""

    task: str
    """What is asked: a name of eval.tasks.registry; docs/add_a_task.md says how to add one."""
    policies: tuple[str, ...] | None = None
    """POLICY, POLICY:NAME=VALUE,NAME=VALUE or WRAPPER(POLICY); default: all. The full cache is always measured."""
    budgets: tuple[str, ...] = ("0.2", "0.1")
    """What is kept: with a decimal point a fraction of the prompt, an integer is a number of slots."""
    examples: int = 20
    """How many examples, if the task has so many."""
    first: int = 0
    """Number of the first of them: variants are chosen on other examples than they are reported on."""
    model: str | None = None
    """A model's name, its folder, or OWNER/NAME of the Hugging Face hub; default: the task's."""
    data: Path | None = None
    """Folder of the task's data, if it reads any."""
    answers: Path | None = None
    """File of the answers; default: TASK.jsonl. It may hold answers of other examples, policies and budgets, too."""
    by: str | None = None
    """A label of the answers, such as duration, to group them by instead of what the task groups them by."""
    out: Path | None = None
    """Also write the summary as JSON."""
    devices: OnDevices = Devices()


def build_policies(
    names: Iterable[str] | None, budgets: Iterable[str], task: type[Task] | Task, tau: float | None = None
) -> Policies:
    """Every policy at every budget, and the full cache; None stands for all policies.

    Raises:
        UserError: on an unknown policy, option or budget, or a policy for a task that takes none.
    """
    found = {Variant("full", "1.0"): build_policy("full", 1.0)}
    if task.full_only and names:
        raise UserError("This task asks the full cache alone; leave out --policies.")
    defaults = {**task.policy_options, **({} if tau is None else {"tau": tau})}
    chosen = [] if task.full_only else [name for name in (names or POLICIES) if name != "full"]
    for text in chosen:
        name, options = split_variant(text)
        for budget in map(parse_budget, budgets):
            found[Variant(text, json.dumps(budget))] = build_policy(name, budget, options, **defaults)
    return found


def load_task(name: str, model: str, data: Path | None) -> Task:
    """A task of `TASKS`, with its model."""
    return TASKS[name].load(model, data)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Answers of a run.

    Attributes:
        task: as named in the options.
        model: its name or folder.
        metric: what the scores are.
        variants: the policies, the full cache first.
        ids: the examples that were asked for.
        results: their answers, and maybe others.
    """

    task: str
    model: str
    metric: str
    variants: tuple[Variant, ...]
    ids: tuple[str, ...]
    results: Results

    def rows(self, variant: Variant) -> list[Row]:
        """All answers under a policy at a budget, about the examples that all could be asked."""
        errors = self.errors
        return [row for id in self.ids if id not in errors for row in self.results.of(id, variant)]

    @property
    def errors(self) -> dict[str, str]:
        """Sentences by example that could not be read or asked."""
        errors = self.results.errors
        return {id: errors[id] for id in self.ids if id in errors and self.results.unanswered(id, self.variants)}


def measure(
    options: Options,
    answers: Path | None,
    load: Loader = load_task,
    also: Sequence[tuple[Sequence[str], Sequence[str]]] = (),
) -> Measured:
    """Asks what the file `answers` does not hold yet; without a file, everything.

    Args:
        options: task, examples, policies and budgets.
        answers: file.
        load: makes the task.
        also: further policies, each with budgets of their own, about the same examples, which are read once for all.

    Raises:
        UserError: on any mistake in the options or the file, a budget that is too small for an example, or if no
            example can be asked.
    """
    if options.task not in TASKS:
        raise UserError(f"Unknown task {options.task!r}; choose one of {', '.join(TASKS)}.")
    if options.examples < 1 or options.first < 0:
        raise UserError(
            f"--examples must be at least 1 and --first at least 0, not {options.examples} and {options.first}."
        )
    command.check_output(answers)
    command.check_output(options.out)
    kind = TASKS[options.task]

    def build(task: type[Task] | Task, tau: float | None = None) -> Policies:
        sets = ((options.policies, options.budgets), *also)
        return dict(pair for names, budgets in sets for pair in build_policies(names, budgets, task, tau).items())

    build(kind)  # mistakes are found before a large model is loaded
    model = options.model or kind.default_model
    about = {
        "task": options.task,
        "model": model,
        "data": options.data and str(options.data),
        "metric": kind.metric,
        "max_new_tokens": kind.max_new_tokens,
        "policy_options": dict(kind.policy_options),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(options.devices.placed(kind.kv_heads(model), model, AxisType.Auto))
        found = stack.enter_context(results.opened(answers if is_first() else None, about))
        found.share()
        task = load(options.task, model, options.data)
        policies = build(kind, TAU.get(task.model.family))
        ids = task.ids[options.first : options.first + options.examples]
        if not ids:
            raise UserError(f"Task {options.task} has {len(task.ids)} examples, and --first {options.first} is none.")
        collect(task, policies, ids, found)
    measured = Measured(options.task, model, kind.metric, tuple(policies), tuple(ids), found)
    report_errors(Console(stderr=True), measured.errors)
    if len(measured.errors) == len(ids):
        raise UserError(f"None of the {len(ids)} examples can be asked.")
    return measured


def collect(task: Task, policies: Policies, ids: Sequence[str], found: Results) -> None:
    """Asks what `found` does not hold yet, and adds it.

    An example that cannot be read or asked is a row with its error, and the run continues; a later run asks it again.

    Raises:
        UserError: if a budget is too small for an example.
    """
    missing = [id for id in ids if found.unanswered(id, policies)]
    for id in track(missing, "examples", console=Console(stderr=True), disable=not missing):
        try:
            example = task.example(id)
            for variant, answers in task.answers(example, policies, found.unanswered(id, policies)):
                found.add(_rows(task, id, variant, example, answers))
        except BudgetError as error:
            raise UserError(f"Example {id}: {error}") from error
        except UserError as error:
            found.add([{"example": id, "error": f"{error}"}])


def _rows(task: Task, id: str, variant: Variant, example: Example, answers: Sequence[Said]) -> list[Row]:
    asked = [
        (turn, question, answer, said.cache_bytes)
        for conversation, said in zip(example.conversations, answers, strict=True)
        for turn, (question, answer) in enumerate(zip(conversation, said.answers, strict=True), 1)
    ]
    return [
        {
            "example": id,
            "policy": variant.policy,
            "budget": json.loads(variant.budget),
            "question": number,
            "of": len(asked),
            "turn": turn,
            "group": question.group,
            "answer": answer,
            "references": list(question.references),
            "score": task.score(answer, question),
            "bytes": size,
            "labels": dict(question.labels),
        }
        for number, (turn, question, answer, size) in enumerate(asked, 1)
    ]


def summary(measured: Measured, by: str | None = None) -> dict[str, Any]:
    """Mean scores with their 95 % intervals by policy, budget, turn and group, ready for JSON.

    Args:
        measured: the answers.
        by: a label that takes the place of the task's groups.

    Raises:
        UserError: if answers have no such label.
    """
    found = {variant: measured.rows(variant) for variant in measured.variants}
    first = found[measured.variants[0]]
    groups, turns = dict.fromkeys(_group(row, by) for row in first), sorted({row["turn"] for row in first})
    figures = TASKS[measured.task].figures
    rows = []
    for variant, answers in found.items():
        for turn in turns:
            own = [row for row in answers if row["turn"] == turn]
            parts = {group: [row for row in own if _group(row, by) == group] for group in groups} | {None: own}
            cells = {
                name: {**_mean(part), **({key: round(x, 4) for key, x in figures(part).items()} if part else {})}
                for name, part in parts.items()
            }
            about = {"policy": variant.policy, "budget": json.loads(variant.budget), "turn": turn}
            rows.append({**about, "groups": {group: cells[group] for group in groups}, "all": cells[None]})
    about = {"task": measured.task, "model": measured.model, "metric": measured.metric}
    read = len(measured.ids) - len(measured.errors)
    return {**about, "examples": read, "errors": measured.errors, "rows": rows}


def _group(row: Row, by: str | None) -> str:
    if by is not None and by not in row["labels"]:
        raise UserError(f"--by {by}: there is no such label; answers have {', '.join(row['labels']) or 'none'}.")
    return row["group"] if by is None else f"{row['labels'][by]}"


def _mean(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """Mean over all questions, and half its interval.

    Questions of one example are not independent: the interval is of the mean as a ratio of sums over examples.
    """
    if not rows:
        return {"asked": 0, "score": None, "half_width": None}
    scores = collections.defaultdict(list)
    for row in rows:
        scores[row["example"]].append(row["score"])
    mean, per_example = float(np.mean([row["score"] for row in rows])), len(rows) / len(scores)
    interval = mean_interval([mean + (sum(own) - mean * len(own)) / per_example for own in scores.values()])
    half_width = None if math.isnan(interval.half_width) else round(interval.half_width, 4)
    return {"asked": len(rows), "score": round(mean, 4), "half_width": half_width}


def print_summary(console: Console, result: Mapping[str, Any]) -> None:
    """Prints a table: a row per policy, budget and turn; of many groups, or figures, a row per group too."""
    cells = [cell for row in result["rows"] for cell in (*row["groups"].values(), row["all"])]
    figures = list(dict.fromkeys(name for cell in cells for name in cell if name not in MEAN))
    groups = list(result["rows"][0]["groups"])
    count, plural = result["examples"], "s" * (result["examples"] != 1)
    metric = result["metric"].replace("_", " ")
    table = Table(title=f"{count} example{plural} of {result['task']}: {metric}", padding=(0, 0), pad_edge=False)
    tall = len(groups) > WIDE or bool(figures)
    for name in ("policy", "budget", "turn", *(("group", "asked", metric, *figures) if tall else (*groups, "all"))):
        table.add_column(name, no_wrap=name in ("policy", "budget", "turn"))
    for row in result["rows"]:
        variant, by_group = (row["policy"], f"{row['budget']}", f"{row['turn']}"), {**row["groups"], "all": row["all"]}
        if not tall:
            table.add_row(*variant, *map(_shown, by_group.values()))
            continue
        for number, (group, cell) in enumerate(by_group.items()):
            shown = (f"{cell[name]:.3f}" if name in cell else "-" for name in figures)
            about = variant if number == 0 else ("", "", "")
            table.add_row(*about, group, f"{cell['asked']}", _shown(cell), *shown, end_section=group == "all")
    console.print(table)


def _shown(cell: Mapping[str, Any]) -> str:
    if not cell["asked"]:
        return "-"
    return f"{cell['score']:.3f}" + ("" if cell["half_width"] is None else f" ± {cell['half_width']:.3f}")


def report_errors(console: Console, errors: Mapping[str, str]) -> None:
    """Says which examples could not be read or asked."""
    for id, sentence in errors.items():
        console.print(f"example {id} is left out: {sentence}", markup=False, highlight=False, soft_wrap=True)


def run(options: Options, load: Loader = load_task) -> None:
    """Measures, prints a table, and writes the summary if asked to; `load` makes the task.

    Raises:
        UserError: on any mistake in the options or the file of answers.
    """
    result = summary(measure(options, options.answers or Path(f"{options.task}.jsonl"), load), options.by)
    if options.out and is_first():
        write_text(options.out, json.dumps(result, indent=1) + "\n")
    print_summary(Console(), result)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.benchmark", description=__doc__)
    return command.run(lambda: run(options), keep_programs=True, devices=options.devices)


if __name__ == "__main__":
    sys.exit(main())

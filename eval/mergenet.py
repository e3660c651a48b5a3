"""Does MergeNet help? Trains every arm of a recipe with several seeds, and compares them pair by pair.

    python -m eval.mergenet --workdir runs/experiment
    python -m eval.mergenet --workdir runs/experiment --seeds 0 1 2 3 4 5 6 7 --out docs/mergenet_cifar10

The source is trained first, once, and stays as it is: arms that read or distil it read this one, but for those whose
source is trained alongside. Arms of one seed start from the same target and see the same pictures, so that differences
are paired by seed. Finished runs are not run again; killed at any moment, the command resumes when started again.
"""

import dataclasses
import functools
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

import jax
import tyro
from rich.console import Console

from eval.mergenet_report import draw, summary, table
from models import command
from models.errors import UserError
from models.files import write_text
from models.readers.json_object import read_object
from train.log import read_metrics
from train.mergenet.arms import ARMS, SOURCE, TARGET
from train.mergenet.command_line import DEFAULT, parse
from train.mergenet.config import Recipe
from train.mergenet.loop import RESULT, check_seeds, train
from train.mergenet.task_config import TaskRecipe
from train.mergenet.trainer import Run

ALL = "all"
BESIDE = ("mergenet", "plus")
"""Arms whose source is trained alongside, as the authors do it."""
COMPARED = ("none", "mergenet", "frozen", "zero", "random", "direct", "kd", "dkd")
COMPARED += ("start", "plus_frozen", "plus_zero", "plus_random")


R = TypeVar("R", Recipe, TaskRecipe)


@dataclasses.dataclass(frozen=True)
class Options(Generic[R]):
    """Trains and compares the arms of a recipe."""

    settings: Annotated[R, tyro.conf.arg(name="")]
    recipe: str = DEFAULT
    """Name of a file mergenet_*.py in train/configs."""
    workdir: Path = Path("runs/experiment")
    """Folder of the runs: source/, and ARM/SEED/."""
    arms: tuple[str, ...] = (ALL,)
    """Arms to compare, or all that the recipe can have; differences are to the first one and to placebos."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of target, pictures' order, and adapter."""
    split: Literal["test", "validation"] = "test"
    """The part that is compared; to choose settings look at validation, and at test once, in the end."""
    smoke: bool = False
    """A look at whether it runs: the recipe's tiny size."""
    data_dir: Path | None = None
    """Folder of data sets that tensorflow-datasets has prepared."""
    out: Path | None = None
    """Also write OUT.json and OUT.png."""


WIDE = 140
"""Columns of a table that goes into a file."""


def run_arms(options: Options, log: Callable[[str], None]) -> None:
    """Trains what is not finished.

    Raises:
        UserError: see `train.mergenet.loop.train`.
    """
    recipe, source = options.settings, options.workdir / SOURCE
    train(Run(recipe.directed().alone(), (0,), source, None, options.data_dir, log))
    for seed in options.seeds:
        for arm in options.arms:
            given = source / "export" / TARGET if reads_frozen(arm) else None
            own = dataclasses.replace(recipe, arm=arm)
            log(f"{arm}, seed {seed}")
            train(Run(own, (seed,), folder(options.workdir, arm, seed), given, options.data_dir, log))
            jax.clear_caches()  # each run compiles programs of its own
            gc.collect()


def reads_frozen(arm: str) -> bool:
    """Whether the arm reads a source that was trained first."""
    return ARMS[arm].source in ("used", "frozen") and arm not in BESIDE


def folder(workdir: Path, arm: str, seed: int) -> Path:
    """Where a run of an arm is."""
    return workdir / arm / str(seed)


def results(options: Options) -> dict:
    """Results of all finished runs: the target's result and measurements by arm and seed, and `summary`."""
    found: dict[str, dict[int, dict]] = {}
    for arm in options.arms:
        places = {seed: folder(options.workdir, arm, seed) for seed in options.seeds}
        found[arm] = {
            seed: read_object(place / RESULT)["seeds"][str(seed)][TARGET] | _measured(place / "metrics.csv")
            for seed, place in places.items()
        }
    source = read_object(options.workdir / SOURCE / RESULT)["seeds"]["0"][TARGET]
    own = found[options.arms[0]][options.seeds[0]]
    metric = next(key for key in own if key.startswith("validation_")).removeprefix("validation_")
    about = {
        "recipe": options.recipe,
        "smoke": options.smoke,
        "metric": metric,
        "split": options.split,
        "source": source,
        "arms": found,
    }
    return about | summary(found, f"{options.split}_{metric}")


def _measured(path: Path) -> dict:
    rows = read_metrics(path)
    own = [row for row in rows if row["name"] == TARGET]
    moved = [row for row in rows if row["kind"] == "transfer"]
    return {
        "seconds": [float(row["seconds"]) for row in own if row["kind"] == "train"],
        "norm": [float(row["norm"]) for row in moved],
        "cosine": [float(row["cosine"]) for row in moved],
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    return command.run(lambda: _main(parse(Options, arguments, "python -m eval.mergenet", __doc__)), keep_programs=True)


def _main(options: Options) -> None:
    recipe = options.settings
    if recipe.direction == "both":
        raise UserError("Arms are compared by what one target gains; give --direction forward or backward.")
    possible = [arm for arm in ARMS if isinstance(recipe, Recipe) or not ARMS[arm].distils]
    arms = tuple(arm for arm in COMPARED if arm in possible) if options.arms == (ALL,) else options.arms
    if unknown := [arm for arm in arms if arm not in possible]:
        raise UserError(f"{options.recipe} has no arm {unknown[0]!r}; take some of {', '.join(possible)}.")
    if not arms or len(set(arms)) < len(arms):
        raise UserError("Name at least one arm, and each once.")
    options = dataclasses.replace(options, arms=arms)
    check_seeds(options.seeds)
    if options.out is not None:
        command.check_output(options.out.with_suffix(".json"))
    run_arms(options, functools.partial(print, flush=True))
    found = results(options)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table(found))
    if options.out is not None:
        write_text(options.out.with_suffix(".json"), json.dumps(found, indent=1, allow_nan=False) + "\n")
        draw(found, options.out.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())

"""Transfers parameters of the trained SmolAV into a fresh one's projectors, with controls, and asks questions of it.

    python -m eval.mergenet_smolav --workdir runs/smolav_small
    python -m eval.mergenet_smolav --recipe smolav_branches --arms none zero frozen --workdir runs/branches
    python -m eval.mergenet_smolav --smoke --workdir runs/smoke

Every setting of a recipe can be changed by its name. Results in the folder are not made again, so that it can be
killed at any moment, and arms and seeds can be added. A table of all results in the folder is printed at the end.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from eval.mergenet_smolav.run import Run, run
from eval.mergenet_smolav.table import sentences, table
from models import command
from models.files import write_text
from train.mergenet.av.config import AV_ARMS, PREFIX, Recipe
from train.mergenet.command_line import parse

DEFAULT = "smolav_small"
SMALL = {"arms": ("none", "frozen", "zero"), "seeds": (0, 1)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs arms and seeds of a recipe, and compares them."""

    settings: Annotated[Recipe, tyro.conf.arg(name="")]
    recipe: str = DEFAULT
    """Name of a file smolav_*.py in train/configs."""
    arms: tuple[str, ...] = AV_ARMS
    """Arms to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each draws its own pictures, clips, initial values and order, the same for all arms."""
    workdir: Path = Path("runs/smolav_small")
    """Where ARM/seedN.json, results.json and results.md are written."""
    smoke: bool = False
    """A minute on a CPU instead: narrow projectors, a few steps, arms none, frozen and zero."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    return command.run(lambda: _main(arguments, functools.partial(print, flush=True)), keep_programs=True)


def _main(arguments: list[str] | None, log: Callable[[str], None]) -> None:
    options = parse(
        Options, arguments, "python -m eval.mergenet_smolav", __doc__, prefix=PREFIX, recipe=DEFAULT, when_smoke=SMALL
    )
    results = run(Run(options.settings, options.arms, options.seeds, options.workdir, log=log))
    text = "\n".join([table(results), "", *sentences(results)])
    write_text(options.workdir / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(options.workdir / "results.md", text + "\n")
    log(text)


if __name__ == "__main__":
    sys.exit(main())

"""Trains two models, the one learning from the other's parameters, or an arm to compare that with.

    python -m train.mergenet --recipe mergenet_cifar10 --workdir runs/mergenet
    python -m train.mergenet --recipe mergenet_qa_to_reviews --smoke --workdir runs/smoke
    python -m train.mergenet --recipe mergenet_cifar100 --arm dkd --seeds 0 1 2 --workdir runs/dkd --merge.cycle 4

Every setting of a recipe can be changed by its name: see --recipe NAME --help. Killed at any moment and started again
with the same arguments, a run resumes after its last whole epoch and gives the same losses. SIGTERM ends it after the
running step with exit status 143.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro
from jax.sharding import AxisType

from models import command
from models.devices import Devices, OnDevices
from models.errors import UserError
from train.mergenet.command_line import DEFAULT, parse
from train.mergenet.config import Recipe
from train.mergenet.loop import train
from train.mergenet.task_config import TaskRecipe
from train.mergenet.trainer import Run

R = TypeVar("R", Recipe, TaskRecipe)


@dataclasses.dataclass(frozen=True)
class Options(Generic[R]):
    """Trains an arm of a recipe; resumes where it was."""

    settings: Annotated[R, tyro.conf.arg(name="")]
    recipe: str = DEFAULT
    """Name of a file mergenet_*.py in train/configs."""
    workdir: Path = Path("runs/mergenet")
    """Where checkpoints, metrics.csv, its plot, result.json and the models are written."""
    seeds: tuple[int, ...] = (0,)
    """Several are trained at once, as one program."""
    smoke: bool = False
    """A minute on a CPU instead: narrow or tiny models, a few epochs of a few examples."""
    source_checkpoint: Path | None = None
    """Folder of a model that a run has exported: the source, which stays as it is."""
    data_dir: Path | None = None
    """Folder of data sets that tensorflow-datasets has prepared."""
    stop_at: int | None = None
    """Stop after so many epochs of the whole run."""
    skip_damaged: bool = False
    """Move damaged checkpoints to WORKDIR/damaged, and resume at the newest whole one."""
    devices: OnDevices = Devices()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, 2 after a user's mistake, or 143 after SIGTERM (as SystemExit)."""
    read: list[Options] = []
    if status := command.run(lambda: read.append(parse(Options, arguments, "python -m train.mergenet", __doc__))):
        return status
    (options,) = read
    return command.run(lambda: _train(options), keep_programs=True, devices=options.devices, hears_sigterm=True)


def _train(options: Options) -> None:
    if options.stop_at is not None and options.stop_at < 1:
        raise UserError(f"--stop-at must be at least 1 epoch, not {options.stop_at}.")
    log = functools.partial(print, flush=True)
    given = (options.source_checkpoint, options.data_dir, log, options.skip_damaged)
    with options.devices.placed(None, options.recipe, AxisType.Auto):  # the step leaves shardings to the compiler
        train(Run(options.settings, options.seeds, options.workdir, *given), options.stop_at)


if __name__ == "__main__":
    sys.exit(main())

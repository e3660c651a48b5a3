"""Writes a run's trained tensors where `load_smolav` finds them.

python -m train.export --workdir runs/smolav --out models/smolav
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

from models import command
from models.errors import UserError
from models.smolav.params import FOLDER, save_smolav, trained_shapes
from train.checkpoint import manager, restore
from train.config import DEFAULT_CONFIG, TrainConfig, read_config
from train.loop import fresh_state
from train.metrics import plot_metrics


@dataclasses.dataclass(frozen=True)
class Options:
    """Exports a run's newest checkpoint."""

    config: Path = DEFAULT_CONFIG
    """The run's configuration."""
    workdir: Path = Path("runs/smolav")
    """The run's folder."""
    out: Path = FOLDER
    """Where the model is written."""


def export(config: TrainConfig, workdir: Path, out: Path) -> int:
    """Exports the newest checkpoint, with the metrics and their plot.

    Returns:
        The step of the checkpoint.

    Raises:
        UserError: if the run has no checkpoint.
    """
    if not (workdir / "checkpoints").is_dir():  # the manager would make it
        raise UserError(f"{workdir} holds no checkpoint; train first, or name another --workdir.")
    like = jax.eval_shape(lambda parts: fresh_state(config, parts), trained_shapes(config.model))
    with manager(workdir / "checkpoints", config.keep) as checkpoints:
        found = restore(checkpoints, like)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint; train first, or name another --workdir.")
    step, state = found
    save_smolav(out, config.model, jax.tree.map(np.asarray, state["trained"]))
    shutil.copyfile(workdir / "metrics.csv", out / "training.csv")
    plot_metrics(out / "training.csv", out / "training.png")
    return step


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m train.export", description=__doc__)
    return command.run(lambda: _export(options))


def _export(options: Options) -> None:
    step = export(read_config(options.config), options.workdir, options.out)
    print(f"exported step {step} to {options.out}")


if __name__ == "__main__":
    sys.exit(main())

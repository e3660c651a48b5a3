"""Writes a run's trained tensors where `load_smolav` finds them.

python -m train.export --workdir runs/smolav --out models/smolav
"""

import argparse
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from models.errors import UserError
from models.smolav.params import FOLDER, save_smolav, trained_shapes
from train.checkpoint import manager, restore
from train.config import TrainConfig, read_config
from train.loop import fresh_state
from train.metrics import plot_metrics


def export(config: TrainConfig, workdir: Path, out: Path) -> int:
    """Exports the newest checkpoint, with the metrics and their plot.

    Returns:
        The step of the checkpoint.

    Raises:
        UserError: if the run has no checkpoint.
    """
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
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.export", description="Exports a run's newest checkpoint.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent / "configs" / "smolav.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/smolav"))
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    try:
        step = export(read_config(options.config), options.workdir, options.out)
    except UserError as error:
        Console(stderr=True).print(str(error), markup=False)
        return 2
    print(f"exported step {step} to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

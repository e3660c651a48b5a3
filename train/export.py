"""Writes a run's trained tensors where `load_smolav` finds them, or a model in another format.

python -m train.export --workdir runs/smolav --out models/smolav
python -m train.export --model Qwen2-7B-Instruct --out exported --dtype bf16
python -m train.export --model smolav --to stablehlo --out programs --policy acckv_plus --budget 0.2
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from models import command
from models.errors import UserError
from models.files import check_new_folder
from models.registry import CHECKPOINTS, NAMED, checkpoint_folder
from models.smolav.params import FOLDER, save_smolav, trained_shapes
from train.checkpoint import manager, restore
from train.exports.hf import export_hf
from train.exports.orbax import export_orbax
from train.exports.stablehlo import ProgramOptions, export_stablehlo
from train.log import plot_metrics
from train.smolav.config import DEFAULT_CONFIG, TrainConfig, read_config
from train.smolav.loop import fresh_state

DTYPES = {"bf16": np.dtype(jnp.bfloat16), "fp32": np.dtype(jnp.float32)}
SHARD_GB = 5.0


@dataclasses.dataclass(frozen=True)
class Options:
    """Exports a run's newest checkpoint, or with --model a model: docs/export.md."""

    config: Path = DEFAULT_CONFIG
    """The run's configuration."""
    workdir: Path = Path("runs/smolav")
    """The run's folder."""
    model: str | None = None
    """A model (smolav), a checkpoint folder, or OWNER/NAME of the Hugging Face hub, to be written to --out instead
    of a run."""
    to: Literal["hf", "orbax", "stablehlo"] = "hf"
    """With --model, the format: safetensors as Hugging Face has them, an Orbax checkpoint, or compiled programs."""
    out: Path | None = None
    """Where the model is written: for a run models/smolav unless given, for --model a new folder."""
    dtype: Literal["bf16", "fp32"] | None = None
    """With --model, the type that its tensors are converted to; their own unless given."""
    max_shard_gb: float = SHARD_GB
    """With --to hf, the largest size of a file of tensors, in 10^9 bytes."""
    programs: Annotated[ProgramOptions, tyro.conf.arg(name="")] = ProgramOptions()


def export(config: TrainConfig, workdir: Path, out: Path) -> int:
    """Exports the newest checkpoint, with the metrics and their plot.

    Returns:
        The step of the checkpoint.

    Raises:
        UserError: if the run has no checkpoint.
    """
    like = jax.eval_shape(lambda parts: fresh_state(config, parts), trained_shapes(config.model))
    with manager(workdir / "checkpoints", config.keep, read_only=True) as checkpoints:
        found = restore(checkpoints, like, config.identity())
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
    if options.programs != ProgramOptions() and (options.to != "stablehlo" or options.model is None):
        raise UserError("Lengths, rows, policies and platforms are of programs: add --model and --to stablehlo.")
    if options.max_shard_gb != SHARD_GB and options.to != "hf":
        raise UserError("--max-shard-gb is of --to hf; leave it out.")
    if options.model is None:
        _export_run(options)
        return
    if options.out is None:
        raise UserError("--model needs --out, the folder to write to.")
    if not options.max_shard_gb > 0:
        raise UserError(f"--max-shard-gb must be above 0, not {options.max_shard_gb}.")
    check_new_folder(options.out)
    dtype = DTYPES[options.dtype] if options.dtype else None
    model = options.model if options.model in NAMED else str(checkpoint_folder(options.model, CHECKPOINTS))
    if options.to == "hf":
        export_hf(model, options.out, dtype, options.max_shard_gb * 1e9)
    elif options.to == "orbax":
        export_orbax(model, options.out, dtype)
    else:
        _report(export_stablehlo(model, options.out, options.programs, dtype))
    print(f"wrote {options.model} to {options.out}")


def _export_run(options: Options) -> None:
    if options.to != "hf":
        raise UserError(f"--to {options.to} exports a model: export the run first, and give its folder as --model.")
    out = options.out or FOLDER
    step = export(read_config(options.config), options.workdir, out)
    print(f"exported step {step} to {out}")


def _report(manifest: dict) -> None:
    """Names the custom calls that a later version of jax may not run."""
    for name, program in manifest["programs"].items():
        for platform, calls in program["custom_calls"].items():
            if unstable := calls["not_guaranteed"]:
                print(f"{name} for {platform} calls {', '.join(unstable)}, which other versions of jax may not know.")


if __name__ == "__main__":
    sys.exit(main())

"""Writes a run's trained tensors where `load_smolav` finds them, or a checkpoint of a large model anew.

python -m train.export --workdir runs/smolav --out models/smolav
python -m train.export --model Qwen2-7B-Instruct --out exported --dtype bf16
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from models import command
from models.errors import UserError
from models.hf.export import save_params
from models.registry import open_source
from models.smolav.params import FOLDER, save_smolav, trained_shapes
from train.checkpoint import manager, restore
from train.log import plot_metrics
from train.smolav.config import DEFAULT_CONFIG, TrainConfig, read_config
from train.smolav.loop import fresh_state

DTYPES = {"bf16": jnp.bfloat16, "fp32": jnp.float32}
COMPANIONS = (".json", ".txt", ".jinja", ".model")
"""Suffixes of files beside the tensors (tokenizer, preprocessing, generation) that a written checkpoint keeps."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Exports a run's newest checkpoint, or with --model writes a checkpoint folder anew."""

    config: Path = DEFAULT_CONFIG
    """The run's configuration."""
    workdir: Path = Path("runs/smolav")
    """The run's folder."""
    model: Path | None = None
    """A checkpoint folder in Hugging Face's format, to be written anew to --out instead."""
    out: Path | None = None
    """Where the model is written: for a run models/smolav unless given, for --model a new folder."""
    dtype: Literal["bf16", "fp32"] | None = None
    """With --model, the type that its tensors are converted to; their own unless given."""
    max_shard_gb: float = 5.0
    """With --model, the largest size of a file of tensors, in 10^9 bytes."""


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


def rewrite(model: Path, out: Path, dtype: jnp.dtype | None = None, max_shard_bytes: float = 5e9) -> None:
    """Reads a checkpoint folder of a supported family and writes it anew, for transformers or for us.

    Args:
        model: the folder to read.
        out: the folder to make.
        dtype: type of the written tensors; None keeps theirs, which then must all be of one type.
        max_shard_bytes: largest size of a file of tensors.

    Raises:
        UserError: if there is no such checkpoint, it is not supported or does not fit its configuration, or `out` is in
            use.
    """
    source = open_source(model)
    kept = dtype or source.dtype()
    _, params = source.load(kept)
    companions = [
        path
        for path in sorted(model.iterdir())
        if path.suffix in COMPANIONS and path.name != "config.json" and not path.name.endswith(".index.json")
    ]
    save_params(
        out,
        params,
        source.tensors,
        _with_dtype(dict(source.config), np.dtype(kept).name),
        max_shard_bytes=max_shard_bytes,
        companions=companions,
    )


def _with_dtype(config: Any, name: str) -> Any:
    """A configuration that says of all its sections that they are of a type; both spellings are kept."""
    if not isinstance(config, dict):
        return config
    return {key: name if key in ("dtype", "torch_dtype") else _with_dtype(value, name) for key, value in config.items()}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m train.export", description=__doc__)
    return command.run(lambda: _export(options))


def _export(options: Options) -> None:
    if options.model is None:
        out = options.out or FOLDER
        step = export(read_config(options.config), options.workdir, out)
        print(f"exported step {step} to {out}")
        return
    if options.out is None:
        raise UserError("--model needs --out, the folder to write to.")
    if not options.max_shard_gb > 0:
        raise UserError(f"--max-shard-gb must be above 0, not {options.max_shard_gb}.")
    dtype = DTYPES[options.dtype] if options.dtype else None
    rewrite(options.model, options.out, dtype, options.max_shard_gb * 1e9)
    print(f"wrote {options.model} to {options.out}")


if __name__ == "__main__":
    sys.exit(main())

"""Files of a run: checkpoints to resume from, its identity, and exported classifiers."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from models.errors import UserError
from models.files import write_text
from models.hf.checkpoint import open_checkpoint
from models.hf.export import save_params
from models.hf.load import load_params
from models.hf.tensors import Tensor, Tensors
from models.layers.init import Params
from models.readers.json_object import read_object
from train.checkpoint import restore, save
from train.mergenet.config import ModelSpec

IDENTITY = "run.json"
FOLDERS = ("checkpoints", "export")
"""Within the folder of a run."""
RESULTS = ("result.json", "checkpoints/*", "*/seed*.json")
"""Files and folders of a run that has results or a checkpoint."""


def save_state(checkpoints: ocp.CheckpointManager, epoch: int, state: Any) -> None:
    """Begins to save any pytree of arrays after `epoch` epochs, see `train.checkpoint.save`."""
    save(checkpoints, epoch, _named(state), {})  # run.json has the settings


def restore_state(
    checkpoints: ocp.CheckpointManager, like: Any, *, skip_damaged: bool = False
) -> tuple[int, Any] | None:
    """The newest checkpoint and its epoch, or None if there is none.

    Args:
        checkpoints: `train.checkpoint.manager`'s.
        like: a state of the same structure and shapes; what is restored lies where its leaves do.
        skip_damaged: see `train.checkpoint.restore`.
    """
    found = restore(checkpoints, _named(like), {}, skip_damaged=skip_damaged)
    if found is None:
        return None
    epoch, named = found
    leaves, structure = jax.tree.flatten(like)
    stored = [
        jax.random.wrap_key_data(named[name]) if _is_key(leaf) else named[name]
        for name, leaf in zip(_names(like), leaves, strict=True)
    ]
    return epoch, jax.tree.unflatten(structure, stored)


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their paths; random keys as the integers that they are."""
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return dict(zip(_names(tree), leaves, strict=True))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def claim(workdir: Path, identity: Mapping[str, Any]) -> None:
    """Writes what a folder holds a run of; before it come `check_claim`, and what a user's mistake can stop.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / IDENTITY, json.dumps(identity, indent=2) + "\n")
    except OSError as problem:
        raise UserError(f"{workdir} cannot be written ({problem.strerror}); name another --workdir.") from problem


def check_claim(workdir: Path, identity: Mapping[str, Any]) -> None:
    """Checks that a folder holds results of just that, or none.

    Raises:
        UserError: if it cannot be a folder of runs, or holds another run.
    """
    for folder in (workdir, *workdir.parents, *(workdir / name for name in FOLDERS)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, where a folder should be; name another --workdir.")
    if not any(found for pattern in RESULTS for found in workdir.glob(pattern)):
        return
    if not (workdir / IDENTITY).is_file():
        raise UserError(f"{workdir} has results, but no {IDENTITY} that says of which run; name another --workdir.")
    held: dict[Any, Any] = flatten_dict(read_object(workdir / IDENTITY))
    asked: dict[Any, Any] = flatten_dict(json.loads(json.dumps(identity)))
    for key in sorted(held.keys() | asked.keys(), key=lambda key: (key[-1] != "arm", key)):
        if held.get(key) != asked.get(key):
            raise UserError(
                f"{workdir} holds a run with {'.'.join(key)} {held.get(key)}, not {asked.get(key)}; name another "
                "--workdir, or repeat that run's settings."
            )


def fresh_folder(folder: Path) -> Path:
    """The folder, removed if it was there; its parent is made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)
    return folder


def export_classifier(folder: Path, spec: ModelSpec, classes: int, params: Params, stats: Params) -> None:
    """Writes a classifier: model.safetensors with its parameters and statistics by our names, and config.json.

    A folder of that name is replaced.

    Raises:
        UserError: if it cannot be written.
    """
    config = {"classifier": dataclasses.asdict(spec), "classes": classes}
    whole = _merged(params, stats)
    save_params(fresh_folder(folder), whole, own_names(whole), config)


def load_exported(folder: Path, spec: ModelSpec, classes: int) -> tuple[Params, Params]:
    """Parameters and statistics that `export_classifier` has written.

    Raises:
        UserError: if there is no such classifier, or the folder holds another.
    """
    config = read_object(folder / "config.json")
    wanted = {"classifier": dataclasses.asdict(spec), "classes": classes}
    if config != wanted:
        raise UserError(f"{folder} holds {config}, and the source is {wanted}; name the folder of such a classifier.")
    params, stats = spec.make(classes).shapes()
    shapes = _merged(params, stats)
    loaded: dict[Any, Any] = flatten_dict(load_params(open_checkpoint(folder), own_names(shapes), shapes))
    return _like(loaded, params), _like(loaded, stats)


def own_names(tree: Params) -> Tensors:
    """Names in a file of our own: the paths."""
    flat: dict[Any, Any] = flatten_dict(tree)
    return {".".join(map(str, path)): Tensor(path) for path in flat}


def _merged(params: Params, stats: Params) -> Params:
    """One nested dict of both."""
    whole = dict(params)
    for key, part in stats.items():
        inner = whole.get(key)
        whole[key] = _merged(inner, part) if isinstance(inner, dict) and isinstance(part, dict) else part
    return whole


def _like(flat: dict[Any, Any], part: Params) -> Params:
    return {
        key: _like({path[1:]: leaf for path, leaf in flat.items() if path[0] == key}, inner)
        if isinstance(inner, dict)
        else flat[(key,)]
        for key, inner in part.items()
    }

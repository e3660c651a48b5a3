"""Parameters as an Orbax checkpoint in a model's folder, read straight onto the devices of any mesh."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import SingleDeviceSharding

from models.errors import UserError
from models.layers.init import Params

FOLDER = "params"
"""The checkpoint's folder in that of a model, beside config.json."""


def holds_orbax(folder: Path) -> bool:
    """Whether a model's folder has its parameters as an Orbax checkpoint."""
    return (folder / FOLDER).is_dir()


def save_orbax(folder: Path, params: Params) -> None:
    """Writes parameters, nested dicts of arrays, into a model's folder.

    Raises:
        UserError: if they cannot be written.
    """
    import orbax.checkpoint as ocp

    with (
        _one_sentence(folder, "cannot be written", "make room, or name another folder"),
        ocp.StandardCheckpointer() as checkpointer,
    ):
        checkpointer.save((folder / FOLDER).absolute(), params)
        checkpointer.wait_until_finished()


def restore_orbax(folder: Path, shapes: Params) -> Params:
    """Reads the parameters in a model's folder.

    Args:
        folder: the model's.
        shapes: nested dict of `jax.ShapeDtypeStruct`, whose types and shardings the arrays get; those without a
            sharding lie on the first device.

    Raises:
        UserError: if they are damaged, or others than `shapes`; all differences are named.
    """
    stored, wanted = _stored(folder), _by_path(shapes)
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    problems += [f"{name} is unknown" for name in sorted(stored.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(stored[name].shape)}, not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & stored.keys())
        if tuple(stored[name].shape) != wanted[name].shape
    ]
    if problems:
        raise UserError(f"The parameters in {folder / FOLDER} do not fit config.json: {'; '.join(problems)}.")
    with _one_sentence(folder, "is damaged", "export it again"):
        return jax.tree_util.tree_map_with_path(lambda path, x: _read(folder, path, x), shapes)


def _read(folder: Path, path: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """One array, of which each device reads its part.

    Orbax reads all of them at once: when one is damaged, the others print tracebacks.
    """
    import tensorstore

    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{(folder / FOLDER).absolute()}/"}}
    kvstore = {**store, "path": jax.tree_util.keystr(path, simple=True, separator=".") + "/"}
    stored = tensorstore.open({"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}).result()
    sharding = like.sharding or SingleDeviceSharding(jax.devices()[0])
    seen: dict[str, np.ndarray] = {}  # devices that hold the same slices share them

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        if str(index) not in seen:
            seen[str(index)] = np.asarray(stored[index].read().result()).astype(like.dtype)
        return seen[str(index)]

    return jax.make_array_from_callback(like.shape, sharding, read)


def orbax_dtypes(folder: Path) -> set[np.dtype]:
    """The types of the parameters in a model's folder.

    Raises:
        UserError: if it is damaged.
    """
    return {np.dtype(array.dtype) for array in _stored(folder).values()}


def _stored(folder: Path) -> dict[str, Any]:
    """What is known of each array without reading it, by its path."""
    import orbax.checkpoint as ocp

    with _one_sentence(folder, "is damaged", "export it again"), ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata((folder / FOLDER).absolute()).item_metadata.tree
        return _by_path(tree)


def _by_path(tree: Params) -> dict[str, Any]:
    flat: dict[Any, Any] = flatten_dict(tree)
    return {".".join(map(str, path)): leaf for path, leaf in flat.items()}


@contextlib.contextmanager
def _one_sentence(folder: Path, problem: str, remedy: str) -> Iterator[None]:
    """Any failure of Orbax as one sentence: it raises several types, and its threads print tracebacks besides."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"{folder / FOLDER} {problem} ({reason:.300}); {remedy}.") from error
    finally:
        log.disabled = before

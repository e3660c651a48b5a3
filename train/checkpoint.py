"""Checkpoints of a training run, with Orbax.

They are written while the training continues, the last few are kept, and each is whole or absent: Orbax writes beside
and renames. A checkpoint says which run it is of; it is restored onto the devices of today, whichever wrote it.
"""

import contextlib
import importlib.metadata
import logging
import os
import re
import shutil
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from models.errors import UserError
from models.layers.init import Params
from train.digests import digests

FORMAT = 2
"""Of a checkpoint's description: what `save` writes beside the arrays."""
ARRAY = b".zarray"
"""Endings of the keys that describe an array."""
REASON_BYTES = 300
ABSENT = "absent"


def manager(folder: Path, keep: int, *, read_only: bool = False) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `folder`.

    Args:
        folder: is made where it is not there. What killed runs have left half-written in it is removed.
        keep: how many checkpoints are kept.
        read_only: for checkpoints that another process may be writing: nothing is made or removed.

    Raises:
        UserError: if the folder cannot be written.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_orbax)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=not read_only, cleanup_tmp_directories=not read_only, read_only=read_only
    )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except OSError as problem:
        raise UserError(f"{folder} cannot be written ({problem.strerror}); name another --workdir.") from problem


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Orbax prints the traceback of every error that it raises, once for each of its threads and futures."""
    frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
    files = (record.pathname, *(frame.filename for frame in frames))
    return not any(f"{os.sep}orbax{os.sep}" in file for file in files)


def save(checkpoints: ocp.CheckpointManager, step: int, state: Params, settings: Mapping[str, Any]) -> None:
    """Begins to save the state after `step` steps, and returns as soon as its arrays may be donated.

    It waits for the save before, if that is still under way.

    Args:
        checkpoints: `manager`'s.
        step: a step that has no checkpoint yet.
        state: the arrays to save.
        settings: what identifies the run, as JSON: a run that has others does not resume here.

    Raises:
        UserError: if this save, or the one before, cannot be written.
    """
    orbax = importlib.metadata.version("orbax-checkpoint")
    described = {"format": FORMAT, "orbax": orbax, "settings": settings, "arrays": _arrays(state)}
    described["digests"] = digests(state)
    try:
        # By force: otherwise a step before the newest checkpoint would not be saved, without a word.
        checkpoints.save(step, args=ocp.args.StandardSave(state), custom_metadata=described, force=True)
    except Exception as problem:
        raise _not_written(checkpoints, problem) from problem


def check(checkpoints: ocp.CheckpointManager) -> None:
    """Does not wait for the save that is under way.

    Raises:
        UserError: if the last save has ended, and could not be written.
    """
    if not checkpoints.is_saving_in_progress():
        finish(checkpoints)


def finish(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until what was saved is on disk under its final name.

    Raises:
        UserError: if it could not be written.
    """
    try:
        checkpoints.wait_until_finished()
    except Exception as problem:
        raise _not_written(checkpoints, problem) from problem


@contextlib.contextmanager
def finishing(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Finishes the save under way when its context ends, be it by an error: see `finish`."""
    try:
        yield
    finally:
        finish(checkpoints)


def _not_written(checkpoints: ocp.CheckpointManager, problem: Exception) -> UserError:
    """What is said of a save that failed; its half-written folder is removed, which the disk may be full of."""
    folder = Path(checkpoints.directory)
    if jax.process_index() == 0:
        for path in folder.glob(f"*{ocp.path.atomicity.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
    step = checkpoints.latest_step()
    left = "there is no earlier one" if step is None else f"the one of step {step} is whole"
    return UserError(
        f"A checkpoint could not be written to {folder} ({_reason(problem)}); {left}: make room, and continue the "
        "run with the same command."
    )


def _reason(problem: BaseException) -> str:
    """Why something failed, in few words."""
    cause = problem.__cause__ or problem  # for damaged data Orbax raises a bare one, whose cause says what it was
    number = re.search(r"os_error_code='(\d+)'", str(cause))  # TensorStore's
    if number:
        return os.strerror(int(number[1]))
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]


def restore(
    checkpoints: ocp.CheckpointManager, like: Params, settings: Mapping[str, Any], *, skip_damaged: bool = False
) -> tuple[int, Params] | None:
    """The newest checkpoint, or None if there is none.

    Args:
        checkpoints: `manager`'s.
        like: a state of the same structure and shapes; where its leaves have a sharding, the restored ones get it. The
            others are replicated over the mesh that is set, or lie on the default device without one.
        settings: those given to `save`.
        skip_damaged: move damaged checkpoints to the folder "damaged" beside `checkpoints`, and take the newest whole
            one. Otherwise a damaged one is an error.

    Raises:
        UserError: if it is damaged, of another run, or written by another version.
    """
    while (step := checkpoints.latest_step()) is not None:
        folder = Path(checkpoints.directory, str(step))
        try:
            return step, _restore(checkpoints, step, like, settings)
        except _DamagedError as damage:
            if not skip_damaged:
                earlier = [other for other in checkpoints.all_steps() if other < step]
                way = f"continue from {max(earlier)}" if earlier else "begin anew"
                option = f"train with --skip-damaged to move it away and {way}"
                raise UserError(f"The checkpoint {folder} is damaged ({damage}); {option}.") from damage
        _move_away(folder)
        checkpoints.reload()
    return None


class _DamagedError(Exception):
    """Why a checkpoint cannot be read."""


def _restore(checkpoints: ocp.CheckpointManager, step: int, like: Params, settings: Mapping[str, Any]) -> Params:
    folder = Path(checkpoints.directory, str(step))
    described = checkpoints.metadata(step)
    if described.init_timestamp_nsecs is None:  # what Orbax gives for a file that is missing or damaged
        raise _DamagedError("its description cannot be read")
    _check_description(folder, described.custom_metadata or {}, like, settings)
    if damage := _agreed(_damage(folder / "default") if jax.process_index() == 0 else ""):
        raise _DamagedError(damage)
    try:
        state = dict(checkpoints.restore(step, args=ocp.args.StandardRestore(jax.tree.map(_placed, like))))
    except Exception as problem:  # it fits, and its arrays are whole: one of Orbax's own files is damaged
        raise _DamagedError(_reason(problem)) from problem
    for name, found in digests(state).items():
        if found != (described.custom_metadata or {})["digests"].get(name):
            raise _DamagedError(f"the values of {name} are not those that were saved")
    return state


def _damage(folder: Path) -> str:
    """What is damaged in the arrays of a checkpoint; empty if nothing is."""
    try:
        _read_arrays(folder)
    except Exception as problem:  # TensorStore has no class of its own for it
        return _reason(problem)
    return ""


def _read_arrays(folder: Path) -> None:
    """Reads every array once, one after the other, and fails at the first that is damaged.

    Orbax reads them all at once and gives up at the first, too, but then other processes would wait for one of them.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    for key in tensorstore.KvStore.open(store).result().list().result():
        if key.endswith(ARRAY):
            kvstore = {**store, "path": key.removesuffix(ARRAY).decode()}
            array = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
            tensorstore.open(array).result().read().result()


def _agreed(text: str) -> str:
    """The first process's text, in all."""
    sent = np.frombuffer(text.encode()[:REASON_BYTES].ljust(REASON_BYTES), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes().decode(errors="ignore").strip()


def _move_away(folder: Path) -> None:
    """Moves a damaged checkpoint to where nothing removes or overwrites it."""
    if jax.process_index() == 0:
        kept = folder.parents[1] / "damaged"
        kept.mkdir(exist_ok=True)
        names = (f"{folder.name}{again}" for again in ("", *(f".{n}" for n in range(1, 1000))))
        folder.rename(next(kept / name for name in names if not (kept / name).exists()))
    multihost_utils.sync_global_devices("train.checkpoint: moved a damaged checkpoint")


def _check_description(folder: Path, held: Mapping[str, Any], like: Params, settings: Mapping[str, Any]) -> None:
    if held.get("format") != FORMAT:
        version = f"format {held['format']}" if "format" in held else "no format"
        raise UserError(
            f"The checkpoint {folder} has {version}, not {FORMAT}: another version of this program wrote it; continue "
            "with that version, or name another --workdir."
        )
    for what, wanted in (("settings", settings), ("arrays", _arrays(like))):
        stored, asked = dict(_flat(held[what])), dict(_flat(wanted))
        for key in sorted(stored.keys() | asked.keys()):
            if stored.get(key, ABSENT) != asked.get(key, ABSENT):
                raise UserError(
                    f"The checkpoint {folder} is of another run: its {key} is {stored.get(key, ABSENT)}, not "
                    f"{asked.get(key, ABSENT)}; name another --workdir, or repeat that run's settings."
                )


def _arrays(state: Params) -> dict[str, str]:
    """Type and shape of every array by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested JSON, by their paths; lists and tuples are alike."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of a leaf, and where it is to lie."""
    mesh, sharding = jax.sharding.get_mesh(), getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and not isinstance(sharding.mesh, jax.sharding.Mesh):
        sharding = NamedSharding(mesh, sharding.spec)  # of the abstract mesh that tracing knows
    elif sharding is None:
        sharding = SingleDeviceSharding(jax.local_devices()[0]) if mesh.empty else NamedSharding(mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

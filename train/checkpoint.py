"""Checkpoints with Orbax: the last few are kept, each is whole or absent."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
import tensorstore

from models.errors import UserError
from models.layers.init import Params

ARRAY = b".zarray"
"""Endings of the keys that describe an array."""


def manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    """A manager of the checkpoints in `folder`, keeping the last `keep`."""
    return ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))


def save(checkpoints: ocp.CheckpointManager, step: int, state: Params) -> None:
    """Saves the state after `step` steps and waits until it is on disk under its final name."""
    checkpoints.save(step, args=ocp.args.StandardSave(state))
    checkpoints.wait_until_finished()


def restore(checkpoints: ocp.CheckpointManager, like: Params) -> tuple[int, Params] | None:
    """The newest checkpoint, or None if there is none.

    Args:
        checkpoints: `manager`'s.
        like: a state of the same structure and shapes.

    Raises:
        UserError: if it is damaged, or of another state.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        _read_arrays(Path(checkpoints.directory, str(step), "default"))
        return step, dict(checkpoints.restore(step, args=ocp.args.StandardRestore(shapes)))
    except Exception as problem:  # for damaged data Orbax raises a bare one, whose cause says what it was
        cause = problem.__cause__ or problem
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(
            f"The checkpoint {checkpoints.directory / str(step)} cannot be read ({reason:.200}); remove it to go on "
            "from the one before, if there is one."
        ) from problem


def _read_arrays(folder: Path) -> None:
    """Reads every array once, one after the other, and fails at the first that is damaged.

    Orbax reads them all at once and gives up at the first, too, but then the others print tracebacks.
    """
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    for key in tensorstore.KvStore.open(store).result().list().result():
        if key.endswith(ARRAY):
            kvstore = {**store, "path": key.removesuffix(ARRAY).decode()}
            array = {"driver": "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
            tensorstore.open(array).result().read().result()

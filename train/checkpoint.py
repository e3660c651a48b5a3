"""Checkpoints with Orbax: the last few are kept, each is whole or absent."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from models.interface import Params


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
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return step, dict(checkpoints.restore(step, args=ocp.args.StandardRestore(shapes)))

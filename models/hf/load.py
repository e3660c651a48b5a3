"""Parameters from a checkpoint, tensor by tensor, each device getting just its slices."""

import fnmatch
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from models.errors import UserError
from models.hf.checkpoint import Checkpoint, listing
from models.hf.tensors import Path, Tensor, Tensors
from models.layers.init import Params
from models.readers.stored import Index, StoredArray

FLOATS = {np.dtype(kind) for kind in (np.float32, np.float16, jnp.bfloat16)}
IGNORED = ("*.rotary_emb.inv_freq", "*.position_ids")
"""Buffers that old checkpoints hold and that are computed."""


def load_params(
    checkpoint: Checkpoint,
    tensors: Tensors,
    shapes: Params,
    *,
    prefix: str = "",
    ignore: Iterable[str] = (),
    copies: Mapping[str, str] | None = None,
) -> Params:
    """Reads parameters, in the types and onto the devices that `shapes` asks for.

    Of each tensor only the slices are read that this process's devices hold, and no more than one tensor's slices are
    on the host at a time.

    Args:
        checkpoint: an opened checkpoint.
        tensors: which tensor is which parameter; it names every leaf of `shapes` once.
        shapes: nested dict of ``jax.ShapeDtypeStruct``: from `models.placement.abstract_params_on` with shardings, or
            from `models.layers.init.abstract_params` without, which puts every parameter whole on the default device.
        prefix: taken off the checkpoint's names where they start with it.
        ignore: patterns (of `fnmatch`) of names that may be there and are not read.
        copies: patterns of names that may be there too and repeat a tensor -> the tensor's name. They are read only to
            be compared with it.

    Returns:
        Nested dict like `shapes`, of arrays on devices.

    Raises:
        UserError: if the checkpoint does not fit; all unknown, missing, duplicate, differing, misshapen and mistyped
            tensors are named at once.
    """
    wanted: dict[Path, Any] = flatten_dict(shapes)
    if sorted(map(str, wanted)) != sorted(str(tensor.path) for tensor in tensors.values()):
        raise ValueError("`tensors` must name each parameter of `shapes` once.")
    stored = _matched(checkpoint, tensors, wanted, prefix, (*IGNORED, *ignore), copies or {})
    loaded = {tensor.path: _array(stored[name], tensor, wanted[tensor.path]) for name, tensor in tensors.items()}
    return unflatten_dict({path: loaded[path] for path in wanted})


def _matched(
    checkpoint: Checkpoint,
    tensors: Tensors,
    wanted: dict[Path, Any],
    prefix: str,
    ignore: tuple[str, ...],
    copies: Mapping[str, str],
) -> dict[str, StoredArray]:
    """The tensors that are to be read, by the names of `tensors`."""
    found: dict[str, StoredArray] = {}
    used = prefix if any(full.startswith(prefix) for full in checkpoint.tensors) else ""
    repeated: list[tuple[str, StoredArray, str]] = []
    duplicate = [f"{name} (in {files})" for name, files in checkpoint.copies.items()]
    unknown, misshapen, mistyped = [], [], []
    for full, stored in checkpoint.tensors.items():
        name = full.removeprefix(prefix)
        if name in found:
            duplicate.append(f"{name} (with and without {prefix!r})")
        elif name in tensors:
            found[name] = stored
            shape = checkpoint_shape(tensors[name], wanted[tensors[name].path].shape)
            if stored.shape != shape:
                misshapen.append(f"{full} is {list(stored.shape)}, not {list(shape)}")
            if stored.dtype not in FLOATS:
                mistyped.append(f"{full} is {stored.dtype}")
        elif original := next((of for pattern, of in copies.items() if fnmatch.fnmatchcase(name, pattern)), None):
            repeated.append((full, stored, original))
        elif not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore):
            unknown.append(full)
    differing = [
        f"{full} ({used}{of})" for full, stored, of in repeated if of in found and not stored.equals(found[of])
    ]
    problems = {
        "unknown": unknown,
        "missing": [used + name for name in tensors if name not in found],
        "duplicate": duplicate,
        "different from the tensor that it should repeat": differing,
        "of a wrong shape": misshapen,
        "not of a floating type (float32, float16, bfloat16)": mistyped,
    }
    if listed := [f"{len(names)} {what}: {listing(names)}" for what, names in problems.items() if names]:
        raise UserError(f"The tensors in {checkpoint.folder} do not fit its config.json: {'; '.join(listed)}.")
    return found


def checkpoint_shape(tensor: Tensor, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the checkpoint of the tensor of a parameter of shape `ours`."""
    return tensor.stored or joined_shape(tensor, ours)


def joined_shape(tensor: Tensor, ours: tuple[int, ...]) -> tuple[int, ...]:
    """The parameter's sizes in the checkpoint's order of axes."""
    return ours if tensor.order is None else tuple(ours[tensor.order.index(axis)] for axis in range(len(ours)))


def _array(stored: StoredArray, tensor: Tensor, like: jax.ShapeDtypeStruct) -> jax.Array:
    order = tensor.order or tuple(range(len(like.shape)))
    joined = joined_shape(tensor, like.shape)
    assert math.prod(joined) == math.prod(stored.shape)
    whole: Index = (slice(None),) * len(order)
    seen: dict[str, np.ndarray] = {}  # devices that hold the same slices share them

    def read(index: Index | None) -> np.ndarray:
        index = index or whole
        if str(index) not in seen:
            turned = list(whole)
            for axis, wanted in zip(order, index, strict=True):
                turned[axis] = wanted
            part = stored.view(tuple(turned), joined).transpose(order)
            seen[str(index)] = np.array(part, like.dtype, order="C", subok=False)
        return seen[str(index)]

    if like.sharding is None:
        return jax.device_put(read(whole))
    return jax.make_array_from_callback(like.shape, like.sharding, read)

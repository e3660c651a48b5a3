"""Parameters from a checkpoint, tensor by tensor, each device getting just its slices."""

import fnmatch
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

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
        tensors: which tensor is which parameter; it names every leaf of `shapes` once, or each of its layers in order.
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
    parts: dict[Path, list[str]] = {path: [] for path in wanted}
    for name, tensor in tensors.items():
        parts.setdefault(tensor.path, []).append(name)
    for path, names in parts.items():
        layers = [tensors[name].layer for name in names]
        if path not in wanted or layers not in ([None], [*range(wanted[path].shape[0])] if wanted[path].shape else []):
            raise ValueError(f"`tensors` must name each parameter of `shapes` once, and {path} is of layers {layers}.")
    stored = _matched(checkpoint, tensors, wanted, prefix, (*IGNORED, *ignore), copies or {})
    loaded = {}
    for path, names in parts.items():
        arrays = ((stored[name], tensors[name]) for name in names)
        whole = tensors[names[0]].layer is None
        loaded[path] = _array(*next(arrays), wanted[path]) if whole else _stack(arrays, wanted[path])
    return unflatten_dict(loaded)


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
    """Shape in the checkpoint of the tensor of a parameter of shape `ours`, or of one of its layers."""
    return tensor.stored or joined_shape(tensor, ours if tensor.layer is None else ours[1:])


def joined_shape(tensor: Tensor, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Our sizes in the checkpoint's order of axes."""
    return ours if tensor.order is None else tuple(ours[tensor.order.index(axis)] for axis in range(len(ours)))


def _stack(layers: Iterable[tuple[StoredArray, Tensor]], like: jax.ShapeDtypeStruct) -> jax.Array:
    """The parameters of all layers, written one after the other into the array that holds them on the devices."""
    shape, sharding = like.shape[1:], like.sharding
    if sharding is not None:
        assert isinstance(sharding, NamedSharding)
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    one = jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)
    whole = jnp.zeros(like.shape, like.dtype, device=like.sharding)
    for number, (stored, tensor) in enumerate(layers):
        whole = _set_layer(whole, _array(stored, tensor, one), number)
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(layers: jax.Array, one: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(layers, one, number, 0)


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

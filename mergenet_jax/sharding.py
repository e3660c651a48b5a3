"""The adapter's work and parameters over a mesh."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ("fsdp", "tensor", "data")
"""Mesh axes over which the adapter's work and parameters are divided, first the one that models are divided over."""
INWARD = ("out", "down")
"""Layers of the adapter whose kernels [width, features] lead back from the divided width."""
Axes = tuple[str, ...]


def _dividing(mesh: AbstractMesh | Mesh, size: int, axes: Axes) -> Axes:
    """As many of these axes of the mesh, in order, as divide `size` together."""
    used: Axes = ()
    for axis in axes:
        if mesh.shape.get(axis, 1) > 1 and size % math.prod(mesh.shape[name] for name in (*used, axis)) == 0:
            used += (axis,)
    return used


def shares(width: int, rows: int) -> tuple[Axes, Axes]:
    """Axes of the mesh that is set, if any, for parts of a hidden layer's width (heads, say), and for its rows.

    First the width: then projections, their kernels' gradients included, are divided as well as attention, and all
    that devices have to exchange is each layer's result. Axes that do not divide it divide the rows, if they can.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = tuple(axis for axis in AXES if axis in mesh.auto_axes)  # the compiler may use these
    for_width = _dividing(mesh, width, free)
    return for_width, _dividing(mesh, rows, tuple(axis for axis in free if axis not in for_width))


def placed(x: Array, *axes: Axes) -> Array:
    """The array with each of its axes divided over some axes of the mesh that is set, if any."""
    if not jax.sharding.get_abstract_mesh().auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(each or None for each in axes)))


def _divided_at(mesh: AbstractMesh | Mesh, leaf: Any, dimensions: Sequence[int], axes: Axes) -> NamedSharding:
    """Each of these axes of the mesh divides the first of these dimensions that it can."""
    spec: list[Axes | None] = [None] * leaf.ndim
    if leaf.ndim > 1:
        for dimension in dimensions:
            if used := _dividing(mesh, leaf.shape[dimension], axes):
                spec[dimension], axes = used, tuple(axis for axis in axes if axis not in used)
    return NamedSharding(mesh, PartitionSpec(*spec))


def _of_model(mesh: AbstractMesh | Mesh, leaf: Any) -> NamedSharding:
    return _divided_at(mesh, leaf, sorted(range(leaf.ndim), key=lambda axis: -leaf.shape[axis]), AXES[:1])


def _of_adapter(mesh: AbstractMesh | Mesh, path: Any, leaf: Any) -> NamedSharding:
    """Where the work is divided parameters are too, so that the least has to be moved."""
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    inward = names[-1] == "kernel" and names[-2] in INWARD
    return _divided_at(mesh, leaf, (-2, -1) if inward else (-1, -2), AXES)


def state_shardings(mesh: AbstractMesh | Mesh, state: Any) -> Any:
    """Where a `MergeState` (or its shapes) lies on a mesh.

    Models are divided over "fsdp", if there is such an axis, and adapters, with what their optimisers keep, over all
    axes, as their work is. Batches are divided over "data" (and "fsdp") by whoever makes them.

    Example:
        >>> mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> shardings = mn.state_shardings(mesh, state)
        >>> placed_state = jax.device_put(state, shardings)
    """
    whole = jax.tree.map(functools.partial(_of_model, mesh), state)
    adapters = jax.tree_util.tree_map_with_path(functools.partial(_of_adapter, mesh), state.adapters)
    return dataclasses.replace(whole, adapters=adapters)

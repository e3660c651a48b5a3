"""Sharding rules: logical axis names to mesh axes, for Explicit meshes, Auto meshes and none.

Nothing here makes a mesh. The script sets one with ``jax.set_mesh``; under an Explicit mesh the specs below reach the
operations that need an output sharding, under an Auto mesh the compiler propagates, without a mesh they vanish.
"""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec

MeshAxis = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axis (or axes) that each logical axis is divided over.

    Attributes:
        batch: rows of a batch, B.
        heads: query heads N and KV heads K (replicated where K does not divide, see `head_axis`).
        mlp: hidden units F of a feed-forward layer.
        vocab: rows of the output head, V.

    Example:
        >>> import acckv_jax as kv
        >>> kv.ShardingRules(batch="data").heads
        'tensor'
    """

    batch: MeshAxis = ("data", "fsdp")
    heads: MeshAxis = "tensor"
    mlp: MeshAxis = "tensor"
    vocab: MeshAxis = "tensor"


def axis_size(axis: MeshAxis) -> int:
    """Number of devices along a mesh axis of the current mesh; 1 where there is none."""
    shape = jax.sharding.get_abstract_mesh().shape
    names = (axis,) if isinstance(axis, str) else (axis or ())
    size = 1
    for name in names:
        size *= shape.get(name, 1)
    return size


def dividing(axis: MeshAxis, size: int) -> MeshAxis:
    """The mesh axis, or None where it does not divide `size`."""
    return axis if size % axis_size(axis) == 0 else None


def head_axis(rules: ShardingRules, kv_heads: int) -> MeshAxis:
    """The mesh axis for heads, or None where `kv_heads` cannot be divided over it (SmolLM2 has 3)."""
    return dividing(rules.heads, kv_heads)


def present(axis: MeshAxis, *, explicit: bool = False) -> MeshAxis:
    """`axis` restricted to the axes of the current mesh, with `explicit` to those of type Explicit."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = (axis,) if isinstance(axis, str) else (axis or ())
    kept = tuple(n for n in names if n in kinds and (not explicit or kinds[n] == AxisType.Explicit))
    if not kept:
        return None
    return kept[0] if len(kept) == 1 else kept


def mesh_spec(*axes: MeshAxis) -> PartitionSpec:
    """A PartitionSpec over the axes that the current mesh has (of any type): for placing arrays."""
    return PartitionSpec(*(present(a) for a in axes))


def out_spec(*axes: MeshAxis) -> PartitionSpec | None:
    """The `out_sharding` of an operation under the current mesh; None unless the mesh has Explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    if not any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return None
    return PartitionSpec(*(present(a, explicit=True) for a in axes))


def gathered(x: jax.Array, *axes: MeshAxis) -> jax.Array:
    """`x` with the given sharding under an Explicit mesh (stored parameters are gathered so); else unchanged."""
    spec = out_spec(*axes)
    return x if spec is None else jax.sharding.reshard(x, spec)


def on_host(x: jax.Array) -> np.ndarray:
    """A whole array on the host; of several processes all must ask for it where none holds all of it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def sharded_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with the sharding that `other` has along its axes under an Explicit mesh; else unchanged.

    `other` may have fewer axes than `x`, which are then the first.
    """
    spec = tuple(jax.typeof(other).sharding.spec)
    wanted = PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))
    return x if jax.typeof(x).sharding.spec == wanted else jax.sharding.reshard(x, wanted)

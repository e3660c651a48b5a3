"""A kernel on every shard of rows and KV heads of whatever mesh there is: compilers cannot divide kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from acckv_jax.sharding import MeshAxis, ShardingRules, dividing, out_spec


def on_shards(
    kernel: Callable[..., Any], axes: Sequence[str], out_axes: Any, *args: Any, rows: int, kv_heads: int
) -> Any:
    """`kernel(*args)`, each device with its rows and KV heads; without a mesh a plain call.

    Axes of the mesh that are Manual already, because the caller is in a `shard_map` of its own, stay as they are.

    Args:
        kernel: works on any number of rows and KV heads.
        axes: for each argument (or all leaves of it) its axes as letters, of which B and K are divided: "BKGTH".
        out_axes: likewise, of the results, in their structure.
        args: the arguments.
        rows: B.
        kv_heads: K.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(*args)
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual}
    rules = ShardingRules()
    divided = {"B": dividing(_among(free, rules.batch), rows), "K": dividing(_among(free, rules.heads), kv_heads)}

    def axes_of(letters: str) -> tuple[MeshAxis, ...]:
        return tuple(divided.get(letter) for letter in letters)

    specs = tuple(PartitionSpec(*axes_of(letters)) for letters in axes)
    placed = []
    for arg, letters in zip(args, axes, strict=True):
        spec = out_spec(*axes_of(letters))
        placed.append(arg if spec is None else jax.tree.map(lambda x, spec=spec: jax.sharding.reshard(x, spec), arg))
    out_specs = jax.tree.map(lambda letters: PartitionSpec(*axes_of(letters)), out_axes)
    # In a shard_map with `check_vma`, kernels run in one without; where all axes are Manual it divides nothing.
    mapped = jax.shard_map(
        kernel, in_specs=specs, out_specs=out_specs, axis_names=free or set(mesh.axis_names), check_vma=False
    )
    return mapped(*placed)


def _among(free: set[str], axis: MeshAxis) -> MeshAxis:
    names = (axis,) if isinstance(axis, str) else (axis or ())
    return tuple(name for name in names if name in free) or None


def typed_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` with the sharding type that `other` has, where an Explicit mesh or a caller's shard_map gives it one."""
    wanted, found = jax.typeof(other), jax.typeof(x)
    if found.sharding != wanted.sharding and not wanted.sharding.mesh.empty:
        x = jax.sharding.reshard(x, wanted.sharding.spec)
    varying = wanted.mat.varying - found.mat.varying
    return jax.lax.pcast(x, tuple(varying), to="varying") if varying else x

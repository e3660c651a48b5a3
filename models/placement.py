"""Where the parameters of a module go on a mesh, by the axes that its own layers compute with."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from acckv_jax.sharding import MeshAxis, ShardingRules, axis_size, dividing, mesh_spec
from models.layers.init import Params
from models.layers.linear import Embed, Linear

STORED = "fsdp"
"""Mesh axis that parameters are divided over for storage only: layers gather them from it where they compute."""


def abstract_params_on(mesh: Mesh, make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """`models.layers.init.abstract_params`, each shape with its sharding on a mesh: to load, or to compile ahead.

    A kernel or an embedding is divided as its layer computes (`models.layers.linear`), and over "fsdp" along an axis
    that is left whole; each only where the mesh's axis divides the size. Everything else is replicated.

    Args:
        mesh: of any of the axes that the module's `ShardingRules` name, and "fsdp".
        make: builds the module, for instance ``lambda: Decoder(config, rngs=FastRngs(0))``.

    Returns:
        The graph definition, and a nested dict of ``jax.ShapeDtypeStruct``.
    """
    with jax.set_mesh(mesh):
        module = nnx.eval_shape(make)
        specs = _specs(module)
    graph, state = nnx.split(module)
    shapes: dict[Any, Any] = flatten_dict(nnx.to_pure_dict(state))
    placed = {
        path: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, specs.get(path, PartitionSpec()))
        )
        for path, leaf in shapes.items()
    }
    return graph, unflatten_dict(placed)


def place(params: Any, make: Callable[[], nnx.Module] | None = None) -> Any:
    """Parameters from the host on the devices: divided over the mesh that is set (`jax.set_mesh`), if any.

    Args:
        params: any pytree of NumPy arrays; on several processes each has all of them.
        make: builds their module, as for `abstract_params_on`; without it all of them are on every device.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.device_put(params)

    def placed(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda part: np.asarray(x[part]))

    if make is None:
        return jax.tree.map(lambda x: placed(x, NamedSharding(mesh, PartitionSpec())), params)
    return jax.tree.map(lambda x, like: placed(x, like.sharding), params, abstract_params_on(mesh, make)[1])


def divided(batch: Any, axis: int = 0) -> Any:
    """Arrays from the host with rows divided over the mesh that is set, where it divides their number.

    Args:
        batch: any pytree; on several processes each has all rows. Without a mesh nothing happens.
        axis: of the rows in every array.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return batch

    def placed(x: np.ndarray) -> jax.Array:
        (rows,) = mesh_spec(dividing(ShardingRules().batch, x.shape[axis]))
        spec = PartitionSpec(*(None,) * axis, rows)
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda part: x[part])

    return jax.tree.map(placed, batch)


def _specs(module: nnx.Module) -> dict[Any, PartitionSpec]:
    """Of the parameters that are divided, by path."""
    specs = {}
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear):
            axis_in, axis_out, _ = layer.axes
            stack = (None,) * (layer.kernel.ndim - 2)  # an axis of layers is never divided: scans walk along it
            specs[*path, "kernel"] = PartitionSpec(*stack, *_stored(layer.kernel.shape[-2:], axis_in, axis_out))
            if layer.bias is not None:
                specs[*path, "bias"] = PartitionSpec(*stack, *_dividing(layer.bias.shape[-1:], axis_out))
        elif isinstance(layer, Embed):
            specs[*path, "embedding"] = _stored(layer.embedding.shape, layer.axes[1], None)
    return specs


def _stored(shape: tuple[int, ...], *axes: MeshAxis) -> PartitionSpec:
    spec = list(_dividing(shape, *axes))
    fits = [axis is None and n % axis_size(STORED) == 0 for n, axis in zip(shape, spec, strict=True)]
    if any(fits) and STORED not in jax.tree.leaves(spec):
        spec[fits.index(True)] = mesh_spec(STORED)[0]
    return PartitionSpec(*spec)


def _dividing(shape: tuple[int, ...], *axes: MeshAxis) -> PartitionSpec:
    return mesh_spec(*(dividing(axis, n) for n, axis in zip(shape, axes, strict=True)))

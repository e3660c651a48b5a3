"""Where the parameters of a module go on a mesh, told by the axes that its own layers compute with."""

from collections.abc import Callable

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from acckv_jax.sharding import MeshAxis, axis_size, mesh_spec
from models.interface import Params, define
from models.layers.linear import Embed, Linear

STORED = "fsdp"
"""Mesh axis that parameters are divided over for storage only: layers gather them from it where they compute."""


def partition_specs(make: Callable[[], nnx.Module]) -> Params:
    """PartitionSpecs of a module's parameters on the current mesh, as a nested dict like the parameters.

    A kernel or an embedding is divided as its layer computes (`models.layers.linear`), and over "fsdp" along an axis
    that is left whole; each only where the axis divides the size. Everything else is replicated.

    Args:
        make: builds the module, for instance ``lambda: Decoder(config, rngs=nnx.Rngs(0))``.
    """
    specs = {path: PartitionSpec() for path in flatten_dict(define(make)[1])}
    for path, module in nnx.iter_modules(nnx.eval_shape(make)):
        if isinstance(module, Linear):
            axis_in, axis_out, _ = module.axes
            specs[*path, "kernel"] = _stored(module.kernel.shape, axis_in, axis_out)
            if module.bias is not None:
                specs[*path, "bias"] = _dividing(module.bias.shape, axis_out)
        elif isinstance(module, Embed):
            specs[*path, "embedding"] = _stored(module.embedding.shape, module.axes[1], None)
    return unflatten_dict(specs)


def param_shardings(make: Callable[[], nnx.Module], mesh: Mesh) -> Params:
    """`partition_specs` on `mesh`, as NamedShardings: for loading, and for compiling ahead of time."""
    with jax.set_mesh(mesh):
        specs = partition_specs(make)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _stored(shape: tuple[int, ...], *axes: MeshAxis) -> PartitionSpec:
    spec = list(_dividing(shape, *axes))
    whole = [
        i for i, (n, axis) in enumerate(zip(shape, spec, strict=True)) if axis is None and not n % axis_size(STORED)
    ]
    if whole and STORED not in jax.tree.leaves(spec):
        spec[whole[0]] = mesh_spec(STORED)[0]
    return PartitionSpec(*spec)


def _dividing(shape: tuple[int, ...], *axes: MeshAxis) -> PartitionSpec:
    return mesh_spec(*(axis if n % axis_size(axis) == 0 else None for n, axis in zip(shape, axes, strict=True)))

"""Layers that are alike as one module, whose parameters have the layers as one more axis in front."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from models.layers.init import Params

M = TypeVar("M", bound=nnx.Module)
X = TypeVar("X")


def stacked(make: Callable[[], M], count: int) -> M:
    """`count` modules as one, to be taken apart by `layer_of` or `run_stacked`."""
    graphs, states = zip(*(nnx.split(make()) for _ in range(count)), strict=True)
    return nnx.merge(graphs[0], jax.tree.map(lambda *x: jnp.stack(x), *states))


def layer_of(layers: M, number: int | Int[Array, ""]) -> M:
    """One of the layers that a module holds; its number may be traced."""
    graph, state = nnx.split(layers)

    def own(x: Array) -> Array:
        return x[number] if isinstance(number, int) else jax.lax.dynamic_index_in_dim(x, number, keepdims=False)

    return nnx.merge(graph, jax.tree.map(own, state))


def run_stacked(layers: nnx.Module, x: X, run: Callable[..., X], *each: Array | np.ndarray) -> X:
    """Hands `x` through all layers in one scan, so that a program is as large as one layer.

    Args:
        layers: as `stacked` makes them, L in number.
        x: input of the first layer: an array, or any pytree of them.
        run: `run(layer, x, *own)` gives the layer's output, of the shapes and types of its input.
        each: what else differs from layer to layer, [L, ...]; `run` gets each layer's own.

    Returns:
        The last layer's output.
    """
    graph, state = nnx.split(layers)

    def step(x: X, given: Any) -> tuple[X, None]:
        own, *others = given
        return run(nnx.merge(graph, own), x, *others), None

    # The scan takes the layers out of the stack, not `layer_of`: a gradient then is a layer's, not the whole stack's.
    return jax.lax.scan(step, x, (state, *each))[0]


def single_layers(params: Params) -> tuple[Params, ...] | None:
    """The parameters of each of stacked layers, where they are views that take no memory: on one CPU device.

    Decoding reads them there, because CPUs copy a layer out of a stack before they multiply by it. Elsewhere it is
    None: accelerators read the stack in place.
    """
    leaves = jax.tree.leaves(params)
    devices = {device for x in leaves if isinstance(x, jax.Array) for device in x.devices()}
    if any(not isinstance(x, jax.Array) for x in leaves) or [x.platform for x in devices] != ["cpu"]:
        return None

    def view(x: np.ndarray) -> Any:
        return jax.device_put(x, *devices)  # the memory of `x`, if that is aligned, or else a copy

    whole = jax.tree.map(np.asarray, params)
    return tuple(jax.tree.map(lambda x, i=i: view(x[i]), whole) for i in range(len(jax.tree.leaves(whole)[0])))

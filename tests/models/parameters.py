"""Random parameters of modules, and whether read parameters are those that a module expects."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from models.layers.init import Params, abstract_params


def random_params(make: Callable[[], nnx.Module], seed: int = 0) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and random parameters: scales around 1, biases around 0, products of order 1.

    NumPy draws them: a module that initialises itself compiles several programs for every shape.
    """
    graph, shapes = abstract_params(make)
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.standard_normal(leaf.shape, np.float32)
        keys = [part.key for part in path]
        in_stack = any(a in ("layers", "blocks") and isinstance(b, str) for a, b in itertools.pairwise(keys))
        if keys[-1] in ("scale", "bias") or leaf.ndim - in_stack == 1:
            values = 0.1 * values + (keys[-1] == "scale")
        else:
            inner = leaf.shape[in_stack:-1]
            values /= np.sqrt(leaf.shape[-1] if keys[-1] == "embedding" else np.prod(inner))
        return jax.device_put(values.astype(leaf.dtype))

    return graph, jax.tree_util.tree_map_with_path(draw, shapes)


def assert_fits(params: Params, make: Callable[[], nnx.Module]) -> None:
    """Same names, shapes and types as the module that `make` builds."""
    _, expected = abstract_params(make)
    found, wanted = (jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree) for tree in (params, expected))
    assert found == wanted

"""How a model is held: a graph definition and a plain dict of parameters, joined only inside pure functions."""

from collections.abc import Callable
from typing import Any

from flax import nnx

Params = dict[Any, Any]


def define(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its parameters as shapes, without allocating any.

    Args:
        make: builds the module, for instance ``lambda: Decoder(config, rngs=nnx.Rngs(0))``.

    Returns:
        The graph definition, and a nested dict of ``jax.ShapeDtypeStruct``.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def create(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its freshly initialised parameters."""
    graph, state = nnx.split(make())
    return graph, nnx.to_pure_dict(state)

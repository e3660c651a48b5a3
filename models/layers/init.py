"""Modules as a graph definition beside a plain dict of parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[Any, Any]


class FastRngs(nnx.Rngs):
    """The keys of `nnx.Rngs`, counted in Python: counting them while a large module is traced takes nnx seconds."""

    def __init__(self, seed: int | jax.Array) -> None:
        super().__init__(seed)
        self.drawn = 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self.default.key[...], self.drawn)
        self.drawn += 1
        return key


def abstract_params(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its parameters as shapes, without allocating any.

    Args:
        make: builds the module, for instance ``lambda: Decoder(config, rngs=FastRngs(0))``.

    Returns:
        The graph definition, and a nested dict of ``jax.ShapeDtypeStruct``.
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    return graph, nnx.to_pure_dict(state)


def init_params(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """The graph definition of a module and its freshly initialised parameters."""
    graph, state = nnx.split(make())
    return graph, nnx.to_pure_dict(state)

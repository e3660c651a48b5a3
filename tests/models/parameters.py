"""Whether read parameters are those that a module expects."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from models.layers.init import Params, abstract_params


def assert_fits(params: Params, make: Callable[[], nnx.Module]) -> None:
    """Same names, shapes and types as the module that `make` builds."""
    _, expected = abstract_params(make)
    found, wanted = (jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree) for tree in (params, expected))
    assert found == wanted

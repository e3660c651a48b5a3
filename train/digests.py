"""Checksums of arrays, computed where the arrays lie, whichever devices and processes they are divided over."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def digests(tree: Any) -> dict[str, int]:
    """By path, the sum of an array's words, each times an odd number of its own, modulo 2**32.

    An odd factor has an inverse, so that no change of a single word leaves the sum as it was.

    Args:
        tree: any pytree of arrays of types of up to four bytes; random keys as the integers that they are.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = _sums([jnp.asarray(leaf) if isinstance(leaf, np.generic) else leaf for _, leaf in leaves])
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {name: int(one) for name, one in zip(names, jax.device_get(sums), strict=True)}


@jax.jit
def _sums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_sum(array) for array in arrays]


def _sum(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool else x
    words = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

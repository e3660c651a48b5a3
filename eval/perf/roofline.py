"""The least time that a decode step can take on this machine: bytes it must read over measured bandwidth."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from acckv_jax import KVCache
from eval.perf.timing import fastest
from models.layers.init import Params
from models.over_decoder import SINGLE

COLUMNS = 4096
KERNELS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "matrix-vector product": lambda matrix, vector: jnp.dot(matrix, vector),
    "sum": lambda matrix, vector: matrix.sum(),
    "sums of products": lambda matrix, vector: (matrix * vector[None, :]).sum(-1),
}
"""Which of them reads fastest depends on the machine and the compiler."""


def bandwidths(size: int = 2**28, runs: int = 20) -> dict[str, float]:
    """Bytes per second at which each kernel reads `size` bytes of float32, the best of some runs."""
    matrix = jnp.ones((size // 4 // COLUMNS, COLUMNS), jnp.float32)
    vector = jnp.ones((COLUMNS,), jnp.float32)
    return {
        name: matrix.nbytes / fastest(jax.jit(kernel), runs, lambda: (matrix, vector))[1]
        for name, kernel in KERNELS.items()
    }


def measured_bandwidth() -> float:
    """Bytes per second of the fastest kernel."""
    return max(bandwidths().values())


def step_bytes(params: Params, cache: KVCache) -> int:
    """Bytes that one decode step reads: every parameter once, and K and V of every slot.

    An embedding table apart from the output head counts as well, though one row of it is read (4 of 84 MB in
    `eval.perf.decode`'s Qwen2; SmolLM2 has none).
    """
    weights = sum(leaf.nbytes for name, part in params.items() if name != SINGLE for leaf in jax.tree.leaves(part))
    return weights + sum(leaf.nbytes for stack in cache.stacks for leaf in jax.tree.leaves((stack.k, stack.v)))

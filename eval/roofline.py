"""The least time that a decode step can take on this machine: bytes it must read over measured bandwidth."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from acckv_jax import KVCache


def measured_bandwidth(size: int = 2**28, runs: int = 5) -> float:
    """Bytes per second of the best of some runs of a matrix-vector product over `size` bytes of float32."""
    columns = 4096
    matrix = jnp.ones((size // 4 // columns, columns), jnp.float32)
    vector = jnp.ones((columns,), jnp.float32)
    product = jax.jit(lambda m, v: (m * v[None, :]).sum(-1))
    jax.block_until_ready(product(matrix, vector))
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(product(matrix, vector))
        best = min(best, time.perf_counter() - start)
    return matrix.nbytes / best


def step_bytes(params: Any, cache: KVCache) -> int:
    """Bytes that one decode step reads: every parameter once, and K and V of every slot."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return weights + sum(layer.k.nbytes + layer.v.nbytes for layer in cache.layers)

"""The few adjacent rows of each sequence that have weight in a column sum (SnapKV's window, for instance)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from acckv_jax.queries import QueryWeights


def window_start(stat: QueryWeights, rows: int) -> Int[Array, " B"]:
    """[B] the first of `rows` adjacent rows, among which are all that have weight; `stat.window` is at most `rows`."""
    first = (stat.weights != 0).argmax(1).astype(jnp.int32)
    return jnp.minimum(first, stat.weights.shape[1] - rows)


def window_rows(x: Array, start: Int[Array, " B"], rows: int, axis: int) -> Array:
    """Entries `start[b]` to `start[b] + rows` of each x[b] [B, ...] along `axis`."""
    return jax.vmap(lambda one, at: jax.lax.dynamic_slice_in_dim(one, at, rows, axis - 1))(x, start)

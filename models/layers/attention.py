"""Bidirectional attention for encoders, over blocks of queries."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ROWS = 250  # queries at a time: no array has T * S entries, and a block's scores stay in a CPU's cache


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    lengths: Int[Array, " B"] | None = None,
    bias: Callable[[Int[Array, " R"]], Float[Array, "B N R S"]] | None = None,
    drop: Callable[[Float[Array, "B N R S"], Int[Array, " R"]], Float[Array, "B N R S"]] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of every query to the first `lengths` keys of its row, or to all of them.

    Args:
        q: queries.
        k: keys.
        v: values.
        lengths: keys of each row that count.
        bias: what is added, in float32, to the scores of the queries with given numbers; some are beyond the last one.
        drop: what is done, in float32, to the weights of the queries with given numbers: dropout.
    """
    batch, tokens, heads, size = q.shape

    def block(queries: Float[Array, "B R N H"], rows: Int[Array, " R"]) -> Float[Array, "B R N H"]:
        scores = jnp.einsum("brnh,bsnh->bnrs", queries, k, preferred_element_type=jnp.float32) * size**-0.5
        if bias is not None:
            scores = scores + bias(rows)
        if lengths is not None:
            seen = jnp.arange(k.shape[1])[None] < lengths[:, None]
            scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)  # finite: a row may see nothing
        weights = jax.nn.softmax(scores)
        if drop is not None:
            weights = drop(weights, rows)
        return jnp.einsum("bnrs,bsnh->brnh", weights.astype(v.dtype), v)

    if tokens <= ROWS:
        return block(q, jnp.arange(tokens))
    blocks = -(-tokens // ROWS)
    padded = jnp.pad(q, ((0, 0), (0, blocks * ROWS - tokens), (0, 0), (0, 0)))
    cut = padded.reshape(batch, blocks, ROWS, heads, size).swapaxes(0, 1)
    out = jax.lax.map(lambda each: block(*each), (cut, jnp.arange(blocks * ROWS).reshape(blocks, ROWS)))
    return out.swapaxes(0, 1).reshape(batch, blocks * ROWS, heads, size)[:, :tokens]

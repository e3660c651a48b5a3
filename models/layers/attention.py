"""Bidirectional attention for encoders, over blocks of queries."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ROWS = 250  # queries at a time: no array has T * S entries, and a block's scores stay in a CPU's cache


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S N H"],
    v: Float[Array, "B S N H"],
    lengths: Int[Array, " B"] | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention of every query to the first `lengths` keys of its row, or to all of them."""

    def block(queries: Float[Array, "B R N H"]) -> Float[Array, "B R N H"]:
        return jax.nn.dot_product_attention(queries, k, v, key_value_seq_lengths=lengths)

    batch, tokens, heads, size = q.shape
    if tokens <= ROWS:
        return block(q)
    blocks = -(-tokens // ROWS)
    padded = jnp.pad(q, ((0, 0), (0, blocks * ROWS - tokens), (0, 0), (0, 0)))
    out = jax.lax.map(block, padded.reshape(batch, blocks, ROWS, heads, size).swapaxes(0, 1))
    return out.swapaxes(0, 1).reshape(batch, blocks * ROWS, heads, size)[:, :tokens]

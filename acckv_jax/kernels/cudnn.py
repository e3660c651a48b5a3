"""Attention on GPUs: cuDNN's flash attention for the output; plain XLA finds the log-sum-exp again for column sums.

cuDNN hands its log-sum-exp back in bfloat16, which is off by up to 3 % of a weight. So the rows that a statistic counts
go through row blocks in float32 a second time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.kernels import row_blocks
from acckv_jax.kernels.shards import on_shards, typed_like
from acckv_jax.kernels.windows import window_rows, window_start
from acckv_jax.queries import QueryWeights, Sums


def refusal(q: Float[Array, "B T N H"], layer: LayerCache) -> str | None:
    """Why cuDNN cannot attend from `q` to the slots of `layer`; None if it can."""
    if jax.default_backend() != "gpu":
        return "a process without a GPU"
    if q.dtype not in (jnp.bfloat16, jnp.float16) or layer.keys.dtype != q.dtype or layer.values.dtype != q.dtype:
        return f"queries, keys and values of types {q.dtype}, {layer.keys.dtype} and {layer.values.dtype}"
    if layer.slots != q.shape[1]:
        return "a chunk after cached slots"
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return f"heads of size {q.shape[-1]}, not a multiple of 8 up to 128"
    return None


def attend(
    q: Float[Array, "B T N H"],
    layer: LayerCache,
    q_index: Int[Array, "B T"],
    statistics: tuple[QueryWeights, ...],
) -> tuple[Float[Array, "B T N H"], Sums]:
    """See `acckv_jax.attention.attend`; slot i is row i's own, and padding comes last."""
    lengths = layer.valid[:, 0].sum(-1, dtype=jnp.int32)  # equal in all heads
    out = on_shards(
        _output,
        ("BTKH", "BTKH", "BTKH", "B"),
        "BTKH",
        q,
        layer.keys.swapaxes(1, 2),
        layer.values.swapaxes(1, 2),
        lengths,
        rows=q.shape[0],
        kv_heads=layer.index.shape[1],
    )
    return typed_like(out, q), _sums(q, layer, q_index, statistics)


def _output(q: Array, k: Array, v: Array, lengths: Int[Array, " B"]) -> Float[Array, "B T N H"]:
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=True, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def _sums(
    q: Float[Array, "B T N H"],
    layer: LayerCache,
    q_index: Int[Array, "B T"],
    statistics: tuple[QueryWeights, ...],
) -> Sums:
    """Column sums by row blocks, whose output is not used and so not computed."""
    tokens = q.shape[1]
    if not statistics:
        return ()
    if not all(stat.window and stat.window < tokens for stat in statistics):
        return row_blocks.attend(q, layer, q_index, statistics, block=row_blocks.BLOCK, aligned=True)[1]
    found = []
    for stat in statistics:
        size = stat.window or tokens
        start = window_start(stat, size)
        some_q, some_index, weights = (window_rows(x, start, size, axis=1) for x in (q, q_index, stat.weights))
        one = QueryWeights(weights, stat.exclude_diagonal)
        found += row_blocks.attend(some_q, layer, some_index, (one,), block=row_blocks.BLOCK)[1]
    return tuple(found)

"""Attention on TPUs: splash attention, which gives a log-sum-exp for every row, then column sums by it.

Splash attention is JAX's flash attention with GQA and segments (`jax.experimental.pallas.ops.tpu.splash_attention`).
It masks by slots, so that rows must be the last slots of the cache, each in its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.kernels.column_sums import LANES, column_sums, largest_block, pad, padded
from acckv_jax.kernels.shards import on_shards, typed_like
from acckv_jax.kernels.windows import window_rows, window_start
from acckv_jax.queries import QueryWeights, Sums

ROWS, SLOTS = 512, 1024
"""Largest blocks of splash attention."""
NORM_BYTES = 2**27
"""Most bytes of splash's log-sum-exp, which it writes once for each of 128 lanes; more rows go in several calls."""


def refusal(q: Float[Array, "B T N H"], layer: LayerCache) -> str | None:
    """Why these kernels cannot attend from `q` to the slots of `layer`; None if they can."""
    if q.dtype not in (jnp.bfloat16, jnp.float32) or layer.keys.dtype != q.dtype or layer.values.dtype != q.dtype:
        return f"queries, keys and values of types {q.dtype}, {layer.keys.dtype} and {layer.values.dtype}"
    if q.shape[-1] % 64:
        return f"heads of size {q.shape[-1]}, not a multiple of 64"
    return None


@jax.jit
def attend(
    q: Float[Array, "B T N H"],
    layer: LayerCache,
    q_index: Int[Array, "B T"],
    statistics: tuple[QueryWeights, ...],
) -> tuple[Float[Array, "B T N H"], Sums]:
    """See `acckv_jax.attention.attend`; the last T slots of `layer` are the rows' own."""
    rows, tokens, heads, size = q.shape
    kv_heads = layer.index.shape[1]
    # Scaled once, in the model's type, so that both kernels see the same logits.
    scaled = q * jnp.asarray(size**-0.5, q.dtype)
    grouped = scaled.reshape(rows, tokens, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    out, sums = on_shards(
        _attend,
        ("BKGTH", "BKSH", "BKSH", "BKS", "BT"),
        ("BKGTH", ("BKS",) * len(statistics)),
        grouped,
        layer.keys,
        layer.values,
        layer.valid,
        statistics,
        rows=rows,
        kv_heads=kv_heads,
    )
    out = typed_like(out, grouped).transpose(0, 3, 1, 2, 4).reshape(q.shape)
    return out, tuple(typed_like(each, layer.mass) for each in sums)


def _attend(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    valid: Bool[Array, "B K S"],
    statistics: tuple[QueryWeights, ...],
) -> tuple[Float[Array, "B K G T H"], Sums]:
    """On one device."""
    tokens, slots = q.shape[3], k.shape[2]
    first = slots - tokens
    # What is added comes after all rows, so that none sees it; rows that are added are cut off.
    q = pad(q, padded(tokens), axis=3)
    k, v, valid = (pad(x, padded(slots), axis=2) for x in (k, v, valid))
    heads = q.shape[1] * q.shape[2]
    most = max(LANES, NORM_BYTES // (heads * LANES * 4) // LANES * LANES)
    parts = []
    for start in range(0, q.shape[3], most):
        flash = functools.partial(_flash, first=first + start, norms=bool(statistics))
        # A batch is a loop: a core takes one sequence after the other, and needs the buffer of one.
        one_by_one = jax.vmap(jax.custom_batching.sequential_vmap(flash))
        parts.append(one_by_one(q[:, :, :, start : start + most], k, v, valid[:, 0]))
    out, lse = jax.tree.map(lambda *x: jnp.concatenate(x, axis=3)[:, :, :, :tokens], *parts)
    if not statistics:
        return out, ()
    sums = _sums(q[:, :, :, :tokens], k, lse, statistics, first)
    return out, tuple(jnp.where(valid, each, 0.0)[:, :, :slots] for each in sums)


def _flash(
    q: Float[Array, "K G T H"],
    k: Float[Array, "K S H"],
    v: Float[Array, "K S H"],
    valid: Bool[Array, " S"],
    *,
    first: int,
    norms: bool,
) -> tuple[Float[Array, "K G T H"], Float[Array, "K G T"] | tuple[()]]:
    """Output and, with `norms`, log-sum-exp of one sequence; row i lies in slot `first + i`."""
    kv_heads, group, tokens, _ = q.shape
    slots = k.shape[1]
    mask = splash_attention_mask.CausalMask((tokens, slots), offset=first)
    block_slots = largest_block(slots, SLOTS)
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([mask] * (kv_heads * group)),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=largest_block(tokens, ROWS),
            block_kv=block_slots,
            block_kv_compute=min(block_slots, ROWS),
        ),
        save_residuals=norms,
    )
    segments = splash_attention_kernel.SegmentIds(jnp.ones(tokens, jnp.int32), valid.astype(jnp.int32))
    found: Any = kernel(q.reshape(-1, *q.shape[2:]), k, v, segments)
    out, lse = (found[0], found[1][0].reshape(q.shape[:3])) if norms else (found, ())
    return out.reshape(q.shape), lse


def _sums(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    lse: Float[Array, "B K G T"],
    statistics: tuple[QueryWeights, ...],
    first: int,
) -> Sums:
    """Column sums, of invalid slots too; row i lies in slot `first + i`."""
    tokens = q.shape[3]
    whole = jnp.full(q.shape[:1], first, jnp.int32)
    if not all(stat.window and padded(stat.window) < tokens for stat in statistics):
        weights = jnp.stack([stat.weights for stat in statistics])
        excluded = tuple(stat.exclude_diagonal for stat in statistics)
        return tuple(column_sums(q, k, lse, weights, first=whole, exclude_diagonal=excluded))
    found = []
    for stat in statistics:
        size = padded(stat.window or tokens)
        start = window_start(stat, size)
        some_q, some_lse = (window_rows(x, start, size, axis=3) for x in (q, lse))
        weights = window_rows(stat.weights, start, size, axis=1)[None]
        excluded = stat.exclude_diagonal
        found.append(column_sums(some_q, k, some_lse, weights, first=whole + start, exclude_diagonal=excluded)[0])
    return tuple(found)

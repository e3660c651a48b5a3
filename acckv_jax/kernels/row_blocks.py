"""Attention row block by row block in plain XLA, on any processor: the reference of the other implementations.

A block of query rows attends, adds its share to every requested column sum, and is gone.
"""

import dataclasses
import itertools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import METADATA, LayerCache
from acckv_jax.queries import QueryWeights, Sums

CPU_BLOCK, BLOCK = 64, 256
"""Rows of a block: few on CPUs, whose caches hold their weights, more where a matrix unit wants work (not measured)."""
SEGMENTS = 8
NARROW = 16
"""Queries of a KV head up to which keys come first in the product: CPUs copy the second factor, transposed."""


def attend(
    q: Float[Array, "B T N H"],
    cache: LayerCache | tuple[LayerCache, ...],
    q_index: Int[Array, "B T"],
    statistics: tuple[QueryWeights, ...] = (),
    *,
    block: int,
    aligned: bool = False,
    log_multiplicity: bool = False,
) -> tuple[Float[Array, "B T N H"], Sums]:
    """See `acckv_jax.attention.attend`; `block` rows at a time (static).

    `aligned` promises that slot i holds the token of row i; several caches need at most `block` rows.
    """
    rows, tokens, heads, size = q.shape
    layers = cache if isinstance(cache, tuple) else (cache,)
    layer = layers[0]
    kv_heads = layer.index.shape[1]
    grouped = q.reshape(rows, tokens, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    if tokens <= block:
        out, sums = _rows(grouped, q_index, layers, statistics, log_multiplicity)
        return out.transpose(0, 3, 1, 2, 4).reshape(q.shape), sums

    blocks = -(-tokens // block)
    extra = blocks * block - tokens

    def split(x: Array, axis: int) -> Array:
        padded = jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)])
        return jnp.moveaxis(padded.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :]), axis, 0)

    row_blocks = (
        split(grouped, 3),
        split(q_index, 1),
        tuple(dataclasses.replace(s, weights=split(s.weights, 1)) for s in statistics),
    )
    totals = tuple(jnp.zeros_like(layer.mass) for _ in statistics)
    outs = []
    segments = min(SEGMENTS, blocks) if aligned else 1
    edges = [round(blocks * i / segments) for i in range(segments + 1)]
    for first, last in zip(edges, edges[1:], strict=False):
        slots = min(last * block, layer.slots) if aligned else layer.slots
        visible = _head(layer, slots)

        def step(carry: Sums, one: tuple, visible: LayerCache = visible) -> tuple[Sums, Array]:
            rows_q, rows_index, rows_stats = one
            out, sums = _rows(rows_q, rows_index, (visible,), rows_stats, log_multiplicity)
            both = zip(statistics, carry, sums, strict=True)
            return tuple(stat.combined(old, new) for stat, old, new in both), out

        part, out = jax.lax.scan(
            step,
            tuple(t[..., :slots] for t in totals),
            jax.tree.map(operator.itemgetter(slice(first, last)), row_blocks),
        )
        totals = tuple(
            jnp.concatenate([p, t[..., slots:]], axis=-1) if slots < layer.slots else p
            for p, t in zip(part, totals, strict=True)
        )
        outs.append(out)
    out = jnp.concatenate(outs)  # [blocks, B, K, G, block, H]
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(rows, blocks * block, *grouped.shape[1:3], size)
    return out[:, :tokens].reshape(q.shape), totals


def _rows(
    q: Float[Array, "B K G T H"],
    q_index: Int[Array, "B T"],
    layers: tuple[LayerCache, ...],
    statistics: tuple[QueryWeights, ...],
    log_multiplicity: bool,
) -> tuple[Float[Array, "B K G T H"], Sums]:
    """Attention of one block of rows over the slots of all `layers` together, and its share of the column sums."""
    parts, ages = [], []
    for layer in layers:
        logits = _products(q, layer.keys) * q.shape[-1] ** -0.5
        if log_multiplicity:
            logits = logits + jnp.log(jnp.maximum(layer.multiplicity, 1.0))[:, :, None, None, :]
        age = q_index[:, None, :, None] - layer.index[:, :, None, :]  # [B, K, T, S]
        seen = layer.valid[:, :, None, :] & (age >= 0)
        # A finite floor: a padding row that sees nothing must not make NaN.
        parts.append(jnp.where(seen[:, :, None], logits, jnp.finfo(jnp.float32).min))
        ages.append(age)
    logits = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
    # Not normalised: outputs and sums are divided instead, which saves a pass over rows x slots.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1)  # [B, K, G, T]
    edges = list(itertools.accumulate(layer.slots for layer in layers))
    out = sum(
        jnp.einsum(
            "bkgts,bksh->bkgth", share.astype(layer.values.dtype), layer.values, preferred_element_type=jnp.float32
        )
        for share, layer in zip(jnp.split(weights, edges[:-1], axis=-1), layers, strict=True)
    )
    out = (out / total[..., None]).astype(layers[0].values.dtype)
    return out, tuple(_column_sums(stat, weights, total, jnp.concatenate(ages, axis=-1)) for stat in statistics)


def _products(q: Float[Array, "B K G T H"], k: Float[Array, "B K S H"]) -> Float[Array, "B K G T S"]:
    """Of every query and key, in float32."""
    if q.shape[2] * q.shape[3] > NARROW:
        return jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    products = jnp.einsum("bksh,bkgth->bksgt", k, q, preferred_element_type=jnp.float32)
    return products.transpose(0, 1, 3, 4, 2)


def _column_sums(
    stat: QueryWeights, weights: Float[Array, "B K G T S"], total: Float[Array, "B K G T"], age: Int[Array, "B K T S"]
) -> Float[Array, "B K S"]:
    """The rows' share of a column sum."""
    rows, heads, group, tokens, slots = weights.shape
    if stat.exclude_diagonal:
        weights = jnp.where(age[:, :, None] == 0, 0.0, weights)
    if stat.reduce == "max":
        return (weights * (stat.weights[:, None, None, :] / total)[..., None]).max((2, 3))
    share = stat.weights[:, None, None, :] / (total * group)  # [B, K, G, T]
    share, flat = share.reshape(rows, heads, group * tokens), weights.reshape(rows, heads, group * tokens, slots)
    return jnp.einsum("bkr,bkrs->bks", share, flat)


def _head(layer: LayerCache, slots: int) -> LayerCache:
    """The first slots of a layer (static)."""
    return dataclasses.replace(
        layer,
        **{name: getattr(layer, name)[:, :, :slots] for name in METADATA},
        k=layer.keys[:, :, :slots],
        v=layer.values[:, :, :slots],
    )

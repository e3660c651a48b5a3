"""Random prompts in a cache, and their attention and column sums in float32 NumPy with every weight at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from acckv_jax.attention import QueryWeights
from acckv_jax.cache import LayerCache, full_layer


@dataclasses.dataclass(frozen=True)
class Shape:
    """Prompts of which a chunk attends to what was cached before, and to itself; lengths are random."""

    rows: int = 2
    prefix: int = 0
    tokens: int = 128
    kv_heads: int = 1
    group: int = 2
    size: int = 64
    dtype: str = "float32"
    statistics: tuple[str, ...] = ("all",)

    @classmethod
    def draw(cls, seed: int) -> "Shape":
        rng = np.random.default_rng(seed)
        names = list(STATISTICS)
        return cls(
            rows=int(rng.integers(1, 3)),
            prefix=int(rng.choice([0, 0, 37, 128, 200])),
            tokens=int(rng.choice([70, 128, 200, 256, 330])),
            kv_heads=int(rng.integers(1, 3)),
            group=int(rng.integers(1, 5)),
            size=int(rng.choice([64, 128])),
            dtype=str(rng.choice(["float32", "bfloat16"])),
            statistics=tuple(str(x) for x in rng.choice(names, rng.integers(1, 5), replace=False)),
        )


STATISTICS = {
    "all": (None, 1, False),
    "position": (None, 2, True),
    "text": (40, 1, False),
    "text off the diagonal": (40, 2, True),
    "window": (32, 1, False),
    "window off the diagonal": (16, 2, True),
}
"""Rows counted from the end (text ones also from the start), power of the position plus 1, diagonal."""


@dataclasses.dataclass(frozen=True)
class Case:
    q: jnp.ndarray
    layer: LayerCache
    index: np.ndarray
    valid: np.ndarray
    statistics: tuple[QueryWeights, ...]
    out: np.ndarray
    sums: tuple[np.ndarray, ...]


def make(shape: Shape, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    dtype, slots = jnp.dtype(shape.dtype), shape.prefix + shape.tokens
    heads = shape.kv_heads * shape.group
    before = rng.integers(max(1, shape.prefix // 2), shape.prefix + 1, shape.rows) if shape.prefix else 0
    lengths = rng.integers(max(1, shape.tokens // 2), shape.tokens + 1, shape.rows)
    lengths[0] = shape.tokens
    before = np.broadcast_to(before, shape.rows)
    slot = np.arange(slots)[None]
    in_chunk = slot >= shape.prefix
    index = np.where(in_chunk, slot - shape.prefix + before[:, None], slot).astype(np.int32)
    valid = np.where(in_chunk, slot - shape.prefix < lengths[:, None], slot < before[:, None])

    def normal(tokens: int, heads: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal((shape.rows, tokens, heads, shape.size)), dtype)

    counted = valid[:, shape.prefix :]
    q, k, v = normal(shape.tokens, heads), normal(slots, shape.kv_heads), normal(slots, shape.kv_heads)
    q = jnp.where(counted[..., None, None], q, 0)
    layer = full_layer(k, v, jnp.asarray(index), jnp.ones_like(index, jnp.int8), jnp.asarray(valid))
    own = index[:, shape.prefix :]
    statistics = tuple(_statistic(name, own, counted, lengths) for name in shape.statistics)
    out, sums = _dense(q, layer, own, statistics)
    return Case(q, layer, own, counted, statistics, out, sums)


def _statistic(name: str, index: np.ndarray, valid: np.ndarray, lengths: np.ndarray) -> QueryWeights:
    last, power, excluded = STATISTICS[name]
    rows = np.arange(valid.shape[1])[None]
    if last is not None:
        valid = valid & ((rows >= (lengths - last)[:, None]) | (name.startswith("text") & (rows < 10)))
    weights = (valid * (index + 1.0) ** (power - 1)).astype(np.float32)
    return QueryWeights(jnp.asarray(weights), excluded, last if name.startswith("window") else None)


def _dense(q, layer, index, statistics) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """On q as kernels see it: scaled, and rounded to its type."""
    rows, tokens, heads, size = q.shape
    k, v, slot, valid = (np.asarray(x) for x in (layer.keys, layer.values, layer.index, layer.valid))
    k, v = (x.astype(np.float32) for x in (k, v))
    kv_heads = k.shape[1]
    scaled = np.asarray(q * jnp.asarray(size**-0.5, q.dtype)).astype(np.float32)
    scaled = scaled.reshape(rows, tokens, kv_heads, heads // kv_heads, size)
    logits = np.einsum("btkgh,bksh->bkgts", scaled, k)
    age = index[:, None, None, :, None] - slot[:, :, None, None, :]
    logits = np.where(valid[:, :, None, None, :] & (age >= 0), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bkgts,bksh->btkgh", weights, v).reshape(rows, tokens, heads, size)
    sums = []
    for stat in statistics:
        counted = np.where(age == 0, 0, weights) if stat.exclude_diagonal else weights
        sums.append(np.einsum("bt,bkgts->bks", np.asarray(stat.weights), counted) / (heads // kv_heads))
    return out, tuple(sums)


def check(case: Case, out, sums) -> None:
    """Outputs of real rows, and sums to 1e-4 of the largest."""
    largest = 2e-2 if case.q.dtype == jnp.bfloat16 else 1e-5
    found = np.asarray(out).astype(np.float32)
    assert out.dtype == case.q.dtype and np.isfinite(found).all()
    np.testing.assert_allclose(found[case.valid], case.out[case.valid], rtol=0, atol=largest)
    assert len(sums) == len(case.sums)
    for ours, expected in zip(sums, case.sums, strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours), expected, rtol=0, atol=1e-4 * max(expected.max(), 1e-30))

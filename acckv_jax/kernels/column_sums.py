"""Weighted column sums of causal attention as a Pallas TPU kernel, from a log-sum-exp that flash attention gave.

    sums[m, j] = sum_i w[m, i] * exp(q_i . k_j * scale - lse_i)        over the rows i that see slot j

Policies of KV caches score slots so (H2O, arXiv 2306.14048; SnapKV, arXiv 2404.14469), and flash attention (arXiv
2205.14135) does not give it: it never holds the weights of all rows of a column. Given the log-sum-exp of every row, a
second pass over Q K^T does. A block of keys meets the row blocks one after the other; weights of a block exist in VMEM
only, and are summed over the query heads of the KV head before they meet the row weights, so that any number of
statistics costs one pass.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
ROWS, SLOTS = 512, 1024
"""Largest blocks. Larger ones read less; with these, blocks and intermediate results fit 16 MiB of VMEM."""
QUERY_BYTES = 2 * 2**20
"""Most bytes of a block of queries, of which VMEM holds two: many query heads per KV head mean fewer rows."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the kernel divides its work.

    Attributes:
        rows: query rows of a block.
        slots: keys of a block.
        row_blocks: number of blocks of rows.
        slot_blocks: number of blocks of keys.
    """

    rows: int
    slots: int
    row_blocks: int
    slot_blocks: int

    @classmethod
    def of(cls, rows: int, slots: int, row_bytes: int) -> "Blocks":
        """The blocks for so many rows and slots; `row_bytes` are those of one row's queries, all heads of a group."""
        rows, slots = padded(rows), padded(slots)
        most = max(LANES, min(ROWS, QUERY_BYTES // row_bytes))
        block_rows, block_slots = largest_block(rows, most), largest_block(slots, SLOTS)
        return cls(block_rows, block_slots, rows // block_rows, slots // block_slots)

    def used(self, first: int) -> int:
        """Pairs of blocks in which a row sees a slot, if row 0 lies in slot `first` and all rows have weight."""
        skipped = (max(j * self.slots - first, 0) // self.rows for j in range(self.slot_blocks))
        return sum(max(self.row_blocks - each, 0) for each in skipped)


def padded(size: int) -> int:
    """`size`, rounded up to what kernels take."""
    return -(-size // LANES) * LANES


def pad(x: Array, size: int, axis: int) -> Array:
    """`x` with zeros behind, so that `axis` has the given size."""
    extra = size - x.shape[axis]
    return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)]) if extra else x


def largest_block(size: int, most: int) -> int:
    """The largest of `LANES` times a power of two that divides `size` and is at most `most`."""
    block = LANES
    while block * 2 <= most and size % (block * 2) == 0:
        block *= 2
    return block


def column_sums(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    lse: Float[Array, "B K G T"],
    weights: Float[Array, "M B T"],
    *,
    first: Int[Array, " B"] | None = None,
    exclude_diagonal: bool | tuple[bool, ...] = False,
    scale: float = 1.0,
    interpret: Any = False,
) -> Float[Array, "M B K S"]:
    """Weighted column sums of causal attention, M at once, each the mean over the query heads of a KV head.

    Row i lies in slot `first + i` and sees this slot and those before it. No array of rows x slots is made. Blocks of
    rows without any weight are not read. The product of q and k has JAX's default matrix precision, as flash kernels'
    has: for float32 on a TPU, set `jax.default_matmul_precision("highest")` for both.

    Where slots are not seen (padding), leave them out of `lse`, and of the result: no slot's sum depends on another's.

    Args:
        q: [B, K, G, T, H] rotated queries, in groups of G heads that share a KV head.
        k: [B, K, S, H] rotated keys, of the same type.
        lse: [B, K, G, T] float32, natural logarithm of the sum of exp(q_i . k_j * scale) over what row i sees.
        weights: [M, B, T] float32 row weights; 0 for rows that do not count. Such rows must be finite nevertheless.
        first: [B] slot of row 0; by default the rows are the last T slots.
        exclude_diagonal: leaves out what a row attends to its own slot (static), for all or for each of the M.
        scale: of the logits (static); 1 for queries that are scaled already.
        interpret: how to run without a TPU, such as `pltpu.InterpretParams()`; see `jax.experimental.pallas`.

    Returns:
        [M, B, K, S] float32.

    Raises:
        ValueError: if the shapes or types do not fit each other, or there are more rows than slots and no `first`.

    Example:
        >>> from jax.experimental.pallas import tpu as pltpu
        >>> q, k = jnp.ones((1, 1, 2, 128, 64)), jnp.ones((1, 1, 128, 64))
        >>> lse = jnp.log(jnp.arange(1.0, 129.0)) + 1  # row i sees i + 1 equal keys, and q . k / 64 is 1
        >>> lse = jnp.broadcast_to(lse[None, None, None, :], (1, 1, 2, 128))
        >>> sums = column_sums(q, k, lse, jnp.ones((1, 1, 128)), scale=1 / 64, interpret=pltpu.InterpretParams())
        >>> sums.shape, round(float(sums[0, 0, 0, 127]) * 128, 3)  # the last slot is seen by the last row only
        ((1, 1, 1, 128), 1.0)
    """
    number = weights.shape[0]
    excluded = exclude_diagonal if isinstance(exclude_diagonal, tuple) else (exclude_diagonal,) * number
    _check(q, k, lse, weights, first, excluded)
    if number == 0:
        return jnp.zeros((0, *k.shape[:3]), jnp.float32)
    if first is None:
        first = jnp.full(q.shape[:1], k.shape[2] - q.shape[3], jnp.int32)
    by_kind = {kind: [m for m in range(number) if excluded[m] == kind] for kind in sorted(set(excluded))}
    shares = weights.astype(jnp.float32) / q.shape[2]
    found = _call(
        q,
        k,
        lse,
        tuple(shares[jnp.array(members)].swapaxes(0, 1) for members in by_kind.values()),
        first.astype(jnp.int32),
        kinds=tuple(by_kind),
        scale=scale,
        interpret=interpret,
    )
    place = {m: (kind, at) for kind, members in enumerate(by_kind.values()) for at, m in enumerate(members)}
    return jnp.stack([found[kind][:, :, at] for kind, at in (place[m] for m in range(number))])


def _check(q: Array, k: Array, lse: Array, weights: Array, first: Array | None, excluded: tuple[bool, ...]) -> None:
    rows, heads, group, tokens, size = q.shape
    wanted = {
        "k": (k.shape, (rows, heads, k.shape[2], size)),
        "lse": (lse.shape, (rows, heads, group, tokens)),
        "weights": (weights.shape, (weights.shape[0], rows, tokens)),
        "exclude_diagonal": ((len(excluded),), (weights.shape[0],)),
        "first": ((rows,) if first is None else first.shape, (rows,)),
    }
    for name, (shape, fits) in wanted.items():
        if shape != fits:
            raise ValueError(f"{name} has the shape {shape}, but {fits} fits queries of the shape {q.shape}.")
    if q.dtype != k.dtype:
        raise ValueError(f"queries and keys must be of one type, not {q.dtype} and {k.dtype}.")
    if first is None and tokens > k.shape[2]:
        raise ValueError(f"{tokens} rows cannot be the last of {k.shape[2]} slots; say where they are by `first`.")


def _call(
    q: Float[Array, "B K G T H"],
    k: Float[Array, "B K S H"],
    lse: Float[Array, "B K G T"],
    weights: tuple[Float[Array, "B m T"], ...],
    first: Int[Array, " B"],
    *,
    kinds: tuple[bool, ...],
    scale: float,
    interpret: Any,
) -> list[Float[Array, "B K m S"]]:
    """The kernel, over weights of statistics that leave out the diagonal (kind True), that do not, or both."""
    rows, heads, group, tokens, size = q.shape
    slots = k.shape[2]
    blocks = Blocks.of(tokens, slots, group * size * q.dtype.itemsize)
    q, lse = (pad(x, padded(tokens), axis=3) for x in (q, lse))
    weights = tuple(pad(each, padded(tokens), axis=2) for each in weights)
    k = pad(k, padded(slots), axis=2)
    nearest = _nearest_with_weight(weights, blocks)

    def row_block(b: Array, j: Array, i: Array, first: Any, nearest: Any) -> Array:
        # Steps that do nothing name the block of the step before or after, so that nothing is copied for them. `//`
        # would ask for the sign, which cannot be compiled for a TPU that is not there.
        seeing = jax.lax.div(jnp.maximum(j * blocks.slots - first[b], 0), jnp.int32(blocks.rows))
        at = jnp.minimum(jnp.maximum(i, seeing), blocks.row_blocks - 1)
        return nearest[b * blocks.row_blocks + at]

    queries = pl.BlockSpec(
        (1, 1, group, blocks.rows, size), lambda b, h, j, i, *p: (b, h, 0, row_block(b, j, i, *p), 0)
    )
    keys = pl.BlockSpec((1, 1, blocks.slots, size), lambda b, h, j, i, *p: (b, h, j, 0))
    norms = pl.BlockSpec((1, 1, group, blocks.rows), lambda b, h, j, i, *p: (b, h, 0, row_block(b, j, i, *p)))
    counted = [
        pl.BlockSpec((1, each.shape[1], blocks.rows), lambda b, h, j, i, *p: (b, 0, row_block(b, j, i, *p)))
        for each in weights
    ]
    found = pl.pallas_call(
        functools.partial(_kernel, kinds=kinds, scale=scale, row_blocks=blocks.row_blocks),
        out_shape=[jax.ShapeDtypeStruct((rows, heads, each.shape[1], k.shape[2]), jnp.float32) for each in weights],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(rows, heads, blocks.slot_blocks, blocks.row_blocks),
            in_specs=[queries, keys, norms, *counted],
            out_specs=[
                pl.BlockSpec((1, 1, each.shape[1], blocks.slots), lambda b, h, j, i, *p: (b, h, 0, j))
                for each in weights
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=cost(q.shape, slots, q.dtype.itemsize, sum(each.shape[1] for each in weights)),
        interpret=interpret,
        name="attention_column_sums",
    )(first, nearest.reshape(-1), q, k, lse, *weights)
    return [each[..., :slots] for each in found]


def _nearest_with_weight(weights: tuple[Array, ...], blocks: Blocks) -> Int[Array, "B blocks"]:
    """For each block of rows itself if a row of it has weight, else the last one before that has, else the first."""
    counts = functools.reduce(jnp.logical_or, [(each != 0).any(1) for each in weights])
    counts = counts.reshape(counts.shape[0], blocks.row_blocks, blocks.rows).any(-1)
    number = jnp.arange(blocks.row_blocks, dtype=jnp.int32)[None, :]
    before = jax.lax.cummax(jnp.where(counts, number, -1), axis=1)
    return jnp.where(before < 0, counts.argmax(1).astype(jnp.int32)[:, None], before)


def _kernel(
    first: Any,
    nearest: Any,
    q: Any,
    k: Any,
    lse: Any,
    *refs: Any,
    kinds: tuple[bool, ...],
    scale: float,
    row_blocks: int,
) -> None:
    """One block of rows and one of slots."""
    weights, sums = refs[: len(kinds)], refs[len(kinds) :]
    group, rows = q.shape[2:4]
    slots = k.shape[2]
    b, j, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(i == 0)
    def _() -> None:
        for each in sums:
            each[...] = jnp.zeros_like(each)

    start = first[b] + i * rows

    @pl.when((nearest[b * row_blocks + i] == i) & (start + rows > j * slots))
    def _() -> None:
        # Slots x rows, not rows x slots: the log-sum-exp lies along lanes, and so it need not be turned.
        share = jnp.zeros((slots, rows), jnp.float32)
        for head in range(group):
            logits = _product(k[0, 0], q[0, 0, head]) * scale
            # At most 1 where the row sees the slot. Elsewhere it may be anything that is finite.
            share += jnp.exp(jnp.minimum(logits - lse[0, 0, head : head + 1, :], 0.0))
        row = start + jax.lax.broadcasted_iota(jnp.int32, share.shape, 1)
        slot = j * slots + jax.lax.broadcasted_iota(jnp.int32, share.shape, 0)
        for kind, each, total in zip(kinds, weights, sums, strict=True):
            seen = jnp.where(row > slot if kind else row >= slot, share, 0.0)
            total[0, 0] += _product(each[0], seen, precision=jax.lax.Precision.HIGHEST)


def _product(a: Array, b: Array, precision: jax.lax.Precision | None = None) -> Array:
    """The product a b^T in float32."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def cost(shape: tuple[int, ...], slots: int, itemsize: int, statistics: int) -> pl.CostEstimate:
    """Work and block traffic of queries [B, K, G, T, H], as if they were the last slots and all rows had weight."""
    rows, heads, group, tokens, size = shape
    blocks = Blocks.of(tokens, slots, group * size * itemsize)
    used = blocks.used(max(slots - tokens, 0))
    pairs = used * blocks.rows * blocks.slots  # of a row and a slot
    row_bytes = group * (size * itemsize + 4) + 4 * statistics  # queries, log-sum-exp and weights
    slot_bytes = size * itemsize + 4 * statistics  # a key, and the sums
    return pl.CostEstimate(
        flops=rows * heads * 2 * pairs * (group * size + statistics),
        transcendentals=rows * heads * group * pairs,
        bytes_accessed=rows * heads * (used * blocks.rows * row_bytes + blocks.slot_blocks * blocks.slots * slot_bytes),
    )

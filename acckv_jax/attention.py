"""Attention over the slots of a cache, with column statistics on the way.

No l x l array exists in any implementation. A policy's statistics are weighted column sums, so accumulated, windowed,
text-row and position-weighted scores are one mechanism.
"""

import functools
import logging
from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.kernels import cudnn, row_blocks, splash
from acckv_jax.queries import QueryWeights, Sums

Implementation = Literal["xla", "tpu", "gpu"]
FEW_ROWS = 64
"""Rows that any implementation takes at once, and for which no kernel is worth its start."""
LOG = logging.getLogger("acckv_jax")


def attend(
    q: Float[Array, "B T N H"],
    cache: LayerCache | tuple[LayerCache, ...],
    q_index: Int[Array, "B T"],
    statistics: tuple[QueryWeights, ...] = (),
    *,
    aligned: bool = False,
    log_multiplicity: bool = False,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "B T N H"], Sums]:
    """Causal attention of new rows over cached slots (their own included).

    Row i sees the valid slots whose token index is at most its own. Softmax in float32, scale H**-0.5.

    Args:
        q: [B, T, N, H] rotated queries; N is a multiple of the K heads of the cache, heads of a group adjacent.
        cache: slots to attend to, the rows' own tokens already among them. For few rows (at most `FEW_ROWS`) they may
            lie in several caches of one layer; column sums then cover all, one after the other.
        q_index: [B, T] token indices of the rows.
        statistics: column sums wanted.
        aligned: promises that the last T slots hold the tokens of the T rows, in order, and the others earlier ones,
            equal in all KV heads; where there are no others, that padding comes last. Later slots can then be skipped,
            which kernels depend on.
        log_multiplicity: adds log(multiplicity) of a slot to its logits.
        implementation: "xla": row blocks, on any processor. "tpu": splash attention and `kernels.column_sums`. "gpu":
            cuDNN, and row blocks for the sums. By default "tpu" in programs that are compiled for TPUs and "xla" in
            others. What a kernel does not take goes through row blocks instead, which the log (`acckv_jax`) says once.

    Returns:
        The output [B, T, N, H], and the column sum [B, K, S] of each entry of `statistics`.

    Raises:
        ValueError: if there is no such implementation.
    """
    if implementation not in (None, "xla", *_KERNELS):
        raise ValueError(f"unknown implementation {implementation!r} of attention; choose xla, tpu or gpu.")
    layers = cache if isinstance(cache, tuple) else (cache,)
    if q.shape[1] <= FEW_ROWS:
        return row_blocks.attend(q, layers, q_index, statistics, block=FEW_ROWS, log_multiplicity=log_multiplicity)
    (layer,) = layers
    options = {"aligned": aligned and layer.slots == q.shape[1], "log_multiplicity": log_multiplicity}
    by_few = functools.partial(row_blocks.attend, block=row_blocks.CPU_BLOCK, **options)
    by_many = functools.partial(_row_blocks, block=row_blocks.BLOCK, **options)
    unfit = "merged slots" if log_multiplicity else None if aligned else "rows that are not the last slots"
    if any(stat.reduce == "max" for stat in statistics):
        unfit = "the largest attention of a token"
    chosen = {}
    for name in _BY_DEFAULT if implementation is None else {implementation} & _KERNELS.keys():
        platform, kernel = _KERNELS[name]
        refused = unfit or kernel.refusal(q, layer)
        if refused is None:
            chosen[platform] = _differentiable(kernel.attend, by_many)
        elif implementation == name or jax.default_backend() == name:
            _say_once(f"attention through row blocks instead of kernels for {name}s: these do not take {refused}.")
    if implementation in _KERNELS and chosen:
        (run,) = chosen.values()
        return run(q, layer, q_index, statistics)
    return jax.lax.platform_dependent(q, layer, q_index, statistics, cpu=by_few, default=by_many, **chosen)


_KERNELS = {"tpu": ("tpu", splash), "gpu": ("cuda", cudnn)}
"""By implementation: the platform, as JAX names it for programs, and the module."""
_BY_DEFAULT = ("tpu",)
"""Not "gpu": it has not run on one yet."""
_row_blocks = jax.jit(row_blocks.attend, static_argnames=("block", "aligned", "log_multiplicity"))
"""Traced once for all layers of a decoder with a loop."""


def _differentiable(kernel: Callable, reference: Callable) -> Callable:
    """`kernel`, with the derivatives of `reference`."""
    run = jax.custom_jvp(kernel)
    run.defjvp(lambda primals, tangents: jax.jvp(reference, primals, tangents))
    return run


@functools.cache
def _say_once(message: str) -> None:
    LOG.warning(message)

"""Speed and memory of policies on one device: a decoder with random weights, every policy, context and batch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax

from acckv_jax import CachePolicy
from acckv_jax.attention import Implementation
from eval.perf.flops import PEAKS, prefill_flops
from eval.perf.plan import FULL, Preset
from eval.perf.roofline import measured_bandwidth, step_bytes
from eval.perf.served import Served, random_params
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy, context and batch; None where it did not come to that.

    Attributes:
        policy: its name.
        context: tokens of a row.
        batch: rows decoded together.
        prefill_seconds: one row, each layer pruned before the next one runs.
        peak_share: operations of that prefill (`prefill_flops`) per second, over the device's peak, if that is known.
        sums_seconds: what the policy's column sums add to reading one row in full.
        prune_seconds: pruning one row that was read in full.
        decode_ms: milliseconds of a decode step of the whole batch.
        tokens_per_second: of the whole batch.
        roofline: least time of a step by measured bandwidth, over the measured one.
        kv_bytes: K and V of the whole batch, slots to decode into included.
        prefill_needs: bytes of the prefill's arguments (weights included), outputs and temporaries, by the compiler.
        decode_needs: likewise of the decode loop.
        peak_bytes: most memory that was in use on the device since the process began, where the device tells.
        bandwidth: measured, bytes per second.
        problem: why there are no numbers.
    """

    policy: str
    context: int
    batch: int
    prefill_seconds: float | None = None
    peak_share: float | None = None
    sums_seconds: float | None = None
    prune_seconds: float | None = None
    decode_ms: float | None = None
    tokens_per_second: float | None = None
    roofline: float | None = None
    kv_bytes: int | None = None
    prefill_needs: int | None = None
    decode_needs: int | None = None
    peak_bytes: int | None = None
    bandwidth: float | None = None
    problem: str | None = None


T = TypeVar("T")


def fitting(run: Callable[[], T]) -> T | None:
    """What `run` returns, or None if the device's memory is too small for it."""
    try:
        return run()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def in_two(served: Served, policy: CachePolicy) -> tuple[float, float]:
    """Seconds of reading one row in full with the policy's sums, and of pruning it."""
    (_, scored), seconds = served.prefill(policy)
    return seconds, served.prune(scored, policy)[1]


def rows_of(
    preset: Preset,
    policies: Mapping[int, Mapping[str, CachePolicy]],
    batches: Sequence[int],
    *,
    steps: int,
    repeats: int,
    attention: Implementation | None,
) -> Iterator[tuple[Served, Row]]:
    """Measures one policy after the other; each row with what it was measured on.

    Args:
        preset: the model.
        policies: by context and name.
        batches: rows to decode together.
        steps: decode steps to time.
        repeats: runs of which the fastest counts.
        attention: of prompts.

    Raises:
        UserError: if the weights alone do not fit.
    """
    bandwidth, params = measured_bandwidth(), fitting(lambda: random_params(preset.decoder, preset.dtype))
    if params is None:
        raise UserError(f"The weights do not fit into this {jax.devices()[0].device_kind}; give fewer --layers.")
    for context, named in policies.items():
        served = Served.of(preset, params, context, steps=steps, repeats=repeats, attention=attention)
        plain = fitting(functools.partial(in_two, served, FULL))
        for name, policy in named.items():
            for row in policy_rows(served, policy, Row(name, context, 0), batches, plain and plain[0], bandwidth):
                yield served, row


def policy_rows(
    served: Served, policy: CachePolicy, row: Row, batches: Sequence[int], plain: float | None, bandwidth: float
) -> Iterator[Row]:
    """One policy on one prompt, for every batch.

    Args:
        served: the decoder and the prompt.
        policy: the policy.
        row: its name and the context.
        batches: rows to decode together.
        plain: seconds of reading the prompt in full without sums, if it fits.
        bandwidth: measured bytes per second.
    """
    device = jax.devices()[0]
    found = fitting(lambda: served.prefill_pruned(policy))
    if found is None:
        problem = "out of memory: not even one prompt can be prefilled"
        yield from (dataclasses.replace(row, batch=batch, problem=problem) for batch in batches)
        return
    logits, cache, prefill = found
    scoring, pruning = fitting(lambda: in_two(served, policy)) or (None, None)
    peak = PEAKS.get(device.device_kind)
    row = dataclasses.replace(
        row,
        prefill_seconds=prefill.seconds,
        peak_share=peak and prefill_flops(served.config, row.context) / prefill.seconds / peak,
        sums_seconds=scoring - plain if scoring and plain else None,
        prune_seconds=pruning,
        prefill_needs=prefill.needs,
    )
    kv_bytes, largest = step_bytes({}, cache), 0
    for batch in batches:
        row = dataclasses.replace(row, batch=batch, kv_bytes=batch * kv_bytes)
        decode = fitting(functools.partial(served.decode_batch, logits, cache, policy, batch))
        if decode is None:
            could = f" ({largest} can)" if largest else ""
            problem = f"out of memory: {batch} rows cannot be decoded together{could}"
            yield dataclasses.replace(row, problem=problem)
            continue
        largest, seconds = max(largest, batch), decode.seconds / served.steps
        yield dataclasses.replace(
            row,
            decode_ms=seconds * 1e3,
            tokens_per_second=batch / seconds,
            roofline=(served.weight_bytes + batch * kv_bytes) / bandwidth / seconds,
            decode_needs=decode.needs,
            peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"),
            bandwidth=bandwidth,
        )

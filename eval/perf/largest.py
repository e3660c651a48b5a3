"""The largest batch whose cache fits beside a model on the devices of a plan, found by compiling."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from acckv_jax import CachePolicy
from eval.perf.compiled import Compiled, compiled
from eval.perf.plan import Plan, device_bytes


@dataclasses.dataclass(frozen=True)
class Largest:
    """What fits, in bytes per device.

    Attributes:
        batch: most rows that are decoded together; 0 if not even one group fits.
        limit: what leaves no room for more rows: decoding, or the prefill of a group beside the other rows' caches.
        prefill: what the prefill of one group needs, weights included.
        decode: what decoding `batch` rows needs, weights included; None if nothing fits.
        row: the cache of one row of each data shard, metadata and slots to decode into included.
        compiled: programs that were compiled.
        seconds: that compiling took.
    """

    batch: int
    limit: Literal["prefill", "decode"]
    prefill: int
    decode: int | None
    row: int
    compiled: int
    seconds: float


def largest_fitting(needs: Callable[[int], int], room: int, nothing: int, most: int) -> int:
    """The largest number up to `most` whose needs are at most `room`; 0 if there is none.

    Args:
        needs: grows nearly in proportion, and is expensive to ask.
        room: what there is.
        nothing: at most what 0 needs; the nearer, the fewer are asked.
        most: asked first.

    Returns:
        0, or a number whose needs were asked. One more does not fit, by the line through the asked numbers around it.
    """
    asked, number = {0: nothing}, most if nothing <= room else 0
    while number not in asked:
        asked[number] = needs(number)
        low = max((n for n, size in asked.items() if size <= room), default=0)
        high = min((n for n, size in asked.items() if size > room), default=None)
        if high is None:
            return low
        each = (asked[high] - asked[low]) / (high - low)
        number = min(low + int((room - asked[low]) / each), high - 1)
    return number


def largest_batch(plan: Plan, memory: int, policy: CachePolicy) -> Largest:
    """Compiles a prefill, and decoding for a few batches.

    Rows are prefilled in groups of one row for each data shard, while the other rows' caches wait in memory,
    and decoded together. The towers that read the media stay in memory too.

    Args:
        plan: a model on devices.
        memory: bytes of a device that programs may use.
        policy: prunes each layer before the next one runs.
    """
    room = memory - plan.towers
    traced = plan.prefill(plan.group, policy)
    row = device_bytes(plan.result(traced)[1])
    prefill = compiled(traced.lower())
    most = 1 + (room - prefill.needs) // row if prefill.fits else 0
    programs: dict[int, Compiled] = {}

    def needs(groups: int) -> int:
        logits, cache = plan.result(plan.prefill(groups * plan.group, policy))
        found = programs[groups] = compiled(plan.decode(logits, cache, policy))
        return found.needs if found.fits else max(found.needs, room + 1)

    groups = largest_fitting(needs, room, device_bytes(plan.params), max(most, 0))
    return Largest(
        batch=groups * plan.group,
        limit="prefill" if groups == max(most, 0) else "decode",
        prefill=prefill.needs,
        decode=programs[groups].needs if groups else None,
        row=row,
        compiled=1 + len(programs),
        seconds=prefill.seconds + sum(program.seconds for program in programs.values()),
    )

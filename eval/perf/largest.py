"""The largest batch whose cache fits beside a model on the devices of a plan, found by compiling."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from acckv_jax import CachePolicy
from eval.perf.compiled import Compiled, compiled
from eval.perf.plan import Plan, device_bytes

SECOND = 8
"""Groups of the second program: with the first, of one group, it gives a line."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """What fits, in bytes per device.

    Attributes:
        batch: most rows that are decoded together; 0 if not even one group fits.
        limit: what leaves no room for more rows: decoding, or the prefill of a group beside the other rows' caches.
        prefill: what the prefill of one group needs, weights included.
        decode: what decoding `batch` rows needs, or one group if none fits, weights included; None if no group can be
            prefilled.
        row: the cache of one row of each data shard, padding and slots to decode into included; None if none fits.
        compiled: programs that were compiled.
        seconds: that compiling took.
    """

    batch: int
    limit: Literal["prefill", "decode"]
    prefill: int
    decode: int | None
    row: int | None
    compiled: int
    seconds: float


def largest_fitting(needs: Callable[[int], int], room: int) -> int:
    """The largest number whose needs are at most `room`; 0 if 1 needs more.

    Args:
        needs: grows nearly in proportion, and is expensive to ask.
        room: what there is.

    Returns:
        A number whose needs were asked. By the line through the two asked numbers around it (or the two largest) one
        more does not fit.
    """
    asked: dict[int, int] = {}
    number, low = 1, 0
    while number not in asked:
        asked[number] = needs(number)
        low = max((n for n, size in asked.items() if size <= room), default=0)
        if low == 0:
            return 0
        high = min((n for n, size in asked.items() if size > room), default=None)
        if len(asked) == 1:
            number = SECOND
            continue
        other = high or max(n for n in asked if n != low)
        each = (asked[other] - asked[low]) / (other - low)
        number = low + int((room - asked[low]) / each)
        if high is not None:
            number = min(number, high - 1)
    return low


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
    prefill = compiled(plan.prefill(plan.group, policy).lower())
    if not prefill.fits or prefill.needs > room:
        return Largest(0, "prefill", prefill.needs, None, None, 1, prefill.seconds)
    programs: dict[int, Compiled] = {}

    def needs(groups: int) -> int:
        logits, cache = plan.result(plan.prefill(groups * plan.group, policy))
        found = programs[groups] = compiled(plan.decode(logits, cache, policy))
        return found.needs if found.fits else max(found.needs, room + 1)

    groups, limit = largest_fitting(needs, room), "decode"
    row = None
    if groups:
        row = ((programs[groups].arguments or 0) - device_bytes(plan.params)) // groups
        waiting = 1 + (room - prefill.needs) // row
        if waiting < groups:
            groups, limit = waiting, "prefill"
            needs(groups)
    return Largest(
        batch=groups * plan.group,
        limit=limit,
        prefill=prefill.needs,
        decode=programs[max(groups, 1)].needs,
        row=row,
        compiled=1 + len(programs),
        seconds=prefill.seconds + sum(program.seconds for program in programs.values()),
    )

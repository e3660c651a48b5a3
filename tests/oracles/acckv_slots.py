"""AccKV's merging and gate in NumPy loops; the decision numbers are those of acckv_numpy.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.oracles.acckv_scores import AV, TEXT
from tests.oracles.acckv_trace import Trace, best
from tests.oracles.attention_numpy import Floats, Ints, unit


def assign(keys: Floats, modality: Ints, selected: Ints, cross: bool, trace: Trace) -> dict[int, int]:
    """Evicted AV token -> the selected token it joins (decisions 13, 14)."""
    units = unit(keys)
    joined = {}
    for j in np.flatnonzero(modality != TEXT).tolist():
        pivots = [p for p in selected.tolist() if cross or modality[p] == modality[j]]
        if j in selected or not pivots:
            continue
        cosines = sorted(((float(units[j] @ units[p]), -p) for p in pivots), reverse=True)
        if len(cosines) > 1:
            trace.note(cosines[0][0] - cosines[1][0])
        joined[j] = -cosines[0][1]
    return joined


@dataclass
class Slot:
    """A slot in the making: the prompt tokens it holds; a pivot is named by its own token, a summary by its last."""

    members: list[int]
    modality: int
    pivot: int | None = None

    @property
    def index(self) -> int:
        return max(self.members) if self.pivot is None else self.pivot

    def mean(self, x: Floats) -> Floats:
        return np.mean([x[j] for j in self.members], axis=0)


def merged_slots(merge: str, keys: Floats, modality: Ints, selected: Ints, cross: bool, trace: Trace) -> list[Slot]:
    """The AV slots of one KV head before the gate (decisions 13-15)."""
    slots = {int(p): Slot([int(p)], int(modality[p]), int(p)) for p in selected}
    if merge == "pivot":
        for j, pivot in assign(keys, modality, selected, cross, trace).items():
            slots[pivot].members.append(j)
        return list(slots.values())
    summaries = []
    if merge == "summary":
        for m in AV:
            evicted = [j for j in np.flatnonzero(modality == m).tolist() if j not in slots]
            if evicted:
                summaries.append(Slot(evicted, m))
    return list(slots.values()) + summaries


def gate_drops(
    gate: str, tau: float, quantile: float, slots: list[Slot], keys: Floats, modality: Ints, high: int, trace: Trace
) -> tuple[list[Slot], dict[int, float]]:
    """The low-priority slots the gate would drop and c of all low-priority slots (decisions 16-19)."""
    centre = keys[modality != TEXT].mean(axis=0) if gate == "centred" else np.zeros(keys.shape[1])
    direction = unit(keys[modality == high] - centre).mean(axis=0)
    low = sorted((slot for slot in slots if slot.modality != high), key=lambda slot: slot.index)
    cosine = {slot.index: float(unit(slot.mean(keys) - centre) @ direction) for slot in low}
    if gate == "quantile":
        count = round(quantile * len(low))
        order = sorted(low, key=lambda slot: (cosine[slot.index], -slot.index))
        if 0 < count < len(order):
            trace.note(cosine[order[count].index] - cosine[order[count - 1].index])
        return order[:count], cosine
    if gate not in ("threshold", "centred"):
        raise ValueError(f"Unknown gate {gate!r}: use threshold, quantile, centred or none.")
    for c in cosine.values():
        trace.note(c - tau)
    return [slot for slot in low if cosine[slot.index] < tau], cosine


def restore_floor(
    dropped: list[Slot], kept: list[Slot], low: int, need: int, score: Floats, trace: Trace
) -> list[Slot]:
    """The slots that stay dropped once the low-priority modality has its floor again (decision 20)."""
    tokens = np.array([slot.pivot for slot in dropped if slot.pivot is not None], dtype=np.int64)
    surviving = sum(slot.modality == low and slot.pivot is not None for slot in kept)
    back = set(best(score, tokens, max(0, need - surviving), trace).tolist())
    return [slot for slot in dropped if slot.pivot is None or slot.pivot not in back]

"""Decoding with a cache that is pruned to a fixed capacity after every n steps, as NumPy loops.

Decisions
---------
 1. A step first appends its token (k, v; index = prompt length + step, modality text, multiplicity 1, mass 0), then
    its query attends to all slots of its KV head, the new one included; softmax scale 1 / sqrt(H); multiplicity is
    not used.
 2. Then mass[slot] += mean over the G query heads of the step's attention probability. The mass of prompt slots
    starts from what prefill counted (column sums of A over all rows, mean over G; see `column_mass`). Evicted mass is
    lost.
 3. After steps n, 2n, 3n ... (counted from 1 since prefill): a KV head with more than `capacity` slots is pruned to
    `capacity` by `select`; one with no more is left alone. So at most capacity + n slots exist, and never more than
    `capacity` after a prune.
 4. `select(mass, index, modality, capacity)` names the kept slots of one KV head. Recency is by index, never by slot.
    Kept slots stay in index order with keys, values and mass unchanged; pruning between steps evicts, it never
    merges.
 5. Equal mass: the earlier token wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.oracles.acckv_scores import AV, TEXT
from tests.oracles.attention_numpy import Floats, Ints, causal_attention


@dataclass(frozen=True)
class Slots:
    """One KV head's slots in index order: index [n], keys [n, H], values [n, H], mass [n], modality [n]."""

    index: Ints
    keys: Floats
    values: Floats
    mass: Floats
    modality: Ints

    def take(self, kept: Ints) -> Slots:
        return Slots(self.index[kept], self.keys[kept], self.values[kept], self.mass[kept], self.modality[kept])


Select = Callable[[Floats, Ints, Ints, int], Ints]


@dataclass(frozen=True)
class Decoded:
    """outputs [T, N, H]; kept[p][head] the indices after prune p; the final slots; the smallest relative mass gap."""

    outputs: Floats
    kept: list[list[Ints]]
    slots: list[Slots]
    margin: float


def column_mass(q: Floats, k: Floats) -> Floats:
    """[K, l]: attention each prompt token received from all rows, mean over the G query heads."""
    heads, length, _ = q.shape
    kv_heads = k.shape[0]
    return causal_attention(q, k).sum(axis=1).reshape(kv_heads, heads // kv_heads, length).mean(axis=1)


def prompt_slots(q: Floats, k: Floats, v: Floats, modality: Ints, kept: Sequence[Ints]) -> list[Slots]:
    """The slots of each KV head after a prefill q [N, l, H], k, v [K, l, H] that keeps the indices kept[head]."""
    mass = column_mass(q, k)
    return [Slots(kept[h], k[h][kept[h]], v[h][kept[h]], mass[h][kept[h]], modality[kept[h]]) for h in range(len(k))]


def decode(
    slots: Sequence[Slots],
    prompt_length: int,
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    select: Select,
    capacity: int,
    every: int,
) -> Decoded:
    """Decode T given tokens q [T, N, H], k, v [T, K, H]."""
    steps, heads, dim = q.shape
    group = heads // k.shape[1]
    now = list(slots)
    outputs = np.zeros((steps, heads, dim))
    history: list[list[Ints]] = []
    margin = math.inf
    for t in range(steps):
        for h, old in enumerate(now):
            index = np.append(old.index, prompt_length + t)
            keys, values = np.vstack([old.keys, k[t, h]]), np.vstack([old.values, v[t, h]])
            received = np.zeros(len(index))
            for g in range(group):
                logits = keys @ q[t, h * group + g] / math.sqrt(dim)
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                outputs[t, h * group + g] = weights @ values
                received += weights / group
            now[h] = Slots(index, keys, values, np.append(old.mass, 0.0) + received, np.append(old.modality, TEXT))
        if (t + 1) % every == 0:
            for h, full in enumerate(now):
                if len(full.index) > capacity:
                    kept = np.sort(select(full.mass, full.index, full.modality, capacity))
                    now[h] = full.take(kept)
                    margin = min(margin, mass_gap(full.mass, kept))
            history.append([head.index.copy() for head in now])
    return Decoded(outputs, history, now, margin)


def mass_gap(mass: Floats, kept: Ints) -> float:
    """Smallest relative gap between the mass of an evicted slot and that of any kept slot.

    Near a float32 rounding error the numbers do not decide the choice: a comparison should then use another seed.
    """
    evicted = np.setdiff1d(np.arange(len(mass)), kept)
    gaps = np.abs(mass[kept][:, None] - mass[evicted][None]) / np.maximum(mass[kept][:, None], 1e-30)
    return float(gaps.min()) if gaps.size else math.inf


def heaviest(mass: Floats, index: Ints, candidates: Ints, count: int) -> Ints:
    """The `count` candidate slots of largest mass; equal mass to the earlier token."""
    return np.array(sorted(candidates.tolist(), key=lambda s: (-mass[s], index[s]))[:count], dtype=np.int64)


def floors_and_mass(prompt_length: int, *, recent: int = 16, floor: float = 0.05) -> Select:
    """AccKV's choice between steps.

    6. Text of the prompt is whole. Of the other slots, r = min(recent, half of them, rounded down) go to the newest
       generated tokens, and video and audio are each sure of their heaviest max(1, round(floor * rest)) tokens, at most
       half of the rest, where rest is what r leaves. All slots still free go to the heaviest of all remaining tokens,
       generated or not: a fixed quota would either starve generation or hold media that are no longer looked at.
    """

    def select(mass: Floats, index: Ints, modality: Ints, capacity: int) -> Ints:
        generated = np.flatnonzero(index >= prompt_length)
        text = np.flatnonzero((modality == TEXT) & (index < prompt_length))
        free = capacity - len(text)
        reserved = min(recent, free // 2)
        rest = free - reserved
        sure = [text, generated[np.argsort(-index[generated])][:reserved]]
        for medium in AV:
            least = min(max(1, round(floor * rest)), rest // 2) if floor else 0
            sure.append(heaviest(mass, index, np.flatnonzero(modality == medium), least))
        kept = np.concatenate(sure)
        others = np.setdiff1d(np.arange(len(index)), kept)
        return np.concatenate([kept, heaviest(mass, index, others, capacity - len(kept))])

    return select

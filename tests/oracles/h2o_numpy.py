"""H2O (heavy-hitter oracle, arXiv 2306.14048) as NumPy loops: at prefill, and during decoding.

Decisions
---------
 1. Score of a token = attention it has received so far, summed over all query rows of the prompt and all decode steps
    (the paper's accumulated attention score), mean over the G query heads of a KV head. No normalisation by age.
 2. Of a budget of B slots, recent = round(recent_ratio * B) (half to even; default ratio 1/2) go to the newest tokens
    by index, the other B - recent to the heaviest of the rest. Equal scores: the earlier token. Modality plays no
    part.
 3. At prefill B = round(budget * l) for a float, `budget` for an int, at most l.
 4. Decoding at fixed capacity B: append, attend (the new token sees itself), accumulate, then, if B + 1 slots are
    occupied, evict the lightest slot outside the newest `recent`. The evicted score is lost (Algorithm 1 of the
    paper). This is `every_n_numpy.decode` with every = 1.
 5. Kept keys hold the rotation of their original position, and positions are not renumbered.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.acckv_numpy import total_budget
from tests.oracles.attention_numpy import Floats, Ints
from tests.oracles.every_n_numpy import Decoded, Select, column_mass, decode, heaviest, prompt_slots


def heavy_and_recent(recent_ratio: float = 0.5) -> Select:
    """H2O's choice among the slots of one KV head."""

    def select(mass: Floats, index: Ints, modality: Ints, capacity: int) -> Ints:
        by_age = np.argsort(index)
        recent = min(round(recent_ratio * capacity), len(index))
        newest, older = by_age[len(index) - recent :], by_age[: len(index) - recent]
        return np.sort(np.concatenate([newest, heaviest(mass, index, older, capacity - recent)]))

    return select


def h2o_prefill(q: Floats, k: Floats, *, budget: float | int, recent_ratio: float = 0.5) -> list[Ints]:
    """Kept prompt indices per KV head for q [N, l, H], k [K, l, H]."""
    length = k.shape[1]
    capacity = total_budget(budget, length)
    select = heavy_and_recent(recent_ratio)
    everything, text = np.arange(length), np.zeros(length, dtype=np.int64)
    return [select(mass, everything, text, capacity) for mass in column_mass(q, k)]


def h2o_decode(
    prompt: tuple[Floats, Floats, Floats],
    stream: tuple[Floats, Floats, Floats],
    *,
    budget: float | int,
    recent_ratio: float = 0.5,
) -> Decoded:
    """Prefill with prompt = (q [N, l, H], k, v [K, l, H]), then decode stream = (q [T, N, H], k, v [T, K, H])."""
    q, k, v = prompt
    length = k.shape[1]
    kept = h2o_prefill(q, k, budget=budget, recent_ratio=recent_ratio)
    slots = prompt_slots(q, k, v, np.zeros(length, dtype=np.int64), kept)
    capacity = total_budget(budget, length)
    return decode(slots, length, *stream, select=heavy_and_recent(recent_ratio), capacity=capacity, every=1)

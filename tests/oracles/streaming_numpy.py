"""StreamingLLM (arXiv 2309.17453) as NumPy: attention sinks and the newest tokens.

Decisions
---------
 1. Kept: the tokens of index < sinks (default 4) and the newest B - sinks, at prefill and after every decode step.
    B < sinks keeps the first B sinks only (a budget that small is the caller's error to report).
 2. Sinks are the first tokens of the prompt (padding is never one). Modality plays no part. All KV heads keep the same.
 3. Positions are not renumbered inside the cache, unlike in the paper: kept keys hold their original rotation.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints
from tests.oracles.every_n_numpy import Select


def sinks_and_recent(sinks: int = 4) -> Select:
    """StreamingLLM's choice among the slots of one KV head."""

    def select(mass: Floats, index: Ints, modality: Ints, capacity: int) -> Ints:
        by_age = np.argsort(index)
        first = by_age[index[by_age] < sinks][:capacity]
        rest = by_age[index[by_age] >= sinks]
        return np.sort(np.concatenate([first, rest[max(0, len(rest) - (capacity - len(first))) :]]))

    return select


def streaming_prefill(length: int, capacity: int, sinks: int = 4) -> Ints:
    """Kept prompt indices."""
    everything = np.arange(length)
    return sinks_and_recent(sinks)(np.zeros(length), everything, np.zeros(length, dtype=np.int64), capacity)

"""What the AccKV oracle returns, and the ranking that both its selection and its gate use."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.oracles.attention_numpy import Floats, Ints


@dataclass(frozen=True)
class HeadCache:
    """What one KV head keeps, in time order.

    Attributes:
      index: [n] original token indices.
      keys: [n, H].
      values: [n, H].
      multiplicity: [n] prompt tokens held by each slot.
      modality: [n].
      is_summary: [n] True for a summary slot.
    """

    index: Ints
    keys: Floats
    values: Floats
    multiplicity: Ints
    modality: Ints
    is_summary: NDArray[np.bool_]


@dataclass
class Trace:
    """The result per KV head, and everything on the way to it.

    `margin` is the smallest distance of any discrete decision from its turning point (relative for scores, absolute for
    cosines, W and roundings): a float32 implementation can only be held to the same slots where it is well above 1e-6.
    """

    heads: list[HeadCache]
    attention: Floats  # A [N, l, l]
    token_score: Floats  # s [K, l]
    modality_mass: Floats  # S [2], video then audio
    weight: Floats  # W [2]
    priority: int | None
    weighted_score: Floats  # W_m * s [K, l]; text columns hold s
    budget: int
    selected: list[Ints] = field(default_factory=list)  # per KV head, before the gate, AV only
    gate_cosine: list[dict[int, float]] = field(default_factory=list)  # per KV head: index -> c of low-priority slots
    dropped: list[Ints] = field(default_factory=list)  # per KV head, indices of slots the gate removed for good
    refilled: list[Ints] = field(default_factory=list)
    margin: float = math.inf

    def note(self, distance: float) -> None:
        """Record the distance of one decision from its turning point."""
        self.margin = min(self.margin, abs(float(distance)))


def best(scores: Floats, candidates: Ints, count: int, trace: Trace) -> Ints:
    """The `count` candidates of largest score, equal scores to the earlier token, in time order."""
    order = sorted(candidates.tolist(), key=lambda j: (-scores[j], j))
    if 0 < count < len(order):
        inside, outside = scores[order[count - 1]], scores[order[count]]
        if math.isfinite(inside) and not inside == outside == 0:
            trace.note(float((inside - outside) / max(abs(inside), 1e-30)))
    return np.array(sorted(order[:count]), dtype=np.int64)

"""What the oracles share: array types, exact causal attention, unit vectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def causal_attention(q: Floats, k: Floats) -> Floats:
    """Softmax attention A [N, l, l] of q [N, l, H] over k [K, l, H], each row over the keys up to its own."""
    heads, length, dim = q.shape
    group = heads // k.shape[0]
    out = np.zeros((heads, length, length))
    for h in range(heads):
        for i in range(length):
            logits = k[h // group, : i + 1] @ q[h, i] / math.sqrt(dim)
            weights = np.exp(logits - logits.max())
            out[h, i, : i + 1] = weights / weights.sum()
    return out


def unit(x: Floats) -> Floats:
    """x [..., H] over its length."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

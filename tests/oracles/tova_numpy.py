"""TOVA (arXiv 2401.06104) as NumPy, in the form of the golden files in tests/golden.

The score of a token is its attention from the last row of the prompt, mean over all query heads, so that all KV heads
keep the same tokens. The last token is always kept. Equal scores: the earlier token.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints, causal_attention


def last_row(q: Floats, k: Floats) -> Floats:
    """[l] attention of the last row for q [N, l, H], k [K, l, H]."""
    return causal_attention(q, k)[:, -1].mean(axis=0)


def tova_prefill(q: Floats, k: Floats, capacity: int) -> Ints:
    """Kept prompt indices, of every KV head."""
    score = last_row(q, k)[:-1]
    return np.sort([*np.argsort(-score, kind="stable")[: capacity - 1], len(score)])

"""R-KV (arXiv 2505.24133) as NumPy loops over one KV head, as its authors' code (Zefan-Cai/R-KV) computes it.

Decisions
---------
 1. The recent queries are the last `window` of all tokens, whose slots are always there and always kept.
 2. Their logits against the slots before the window: the largest over the heads of the group, then softmax over these
    slots alone, mean over the queries, and the largest over `kernel` neighbouring slots (kept ones, not positions).
 3. Redundancy of a slot: the mean over all slots i of cos(k_i, k_j), where the diagonal counts as zero, and so does, in
    each row i, the last j with a cosine above the threshold; a row without one lets off the first slot. Softmax over
    all slots, the window included.
 4. Score: share * attention - (1 - share) * redundancy. The best capacity - window slots stay; ties: the earlier one.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints


def softmax(x: Floats) -> Floats:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def redundancy(keys: Floats, threshold: float) -> Floats:
    """[n] for keys [n, H]."""
    directions = keys / (np.linalg.norm(keys, axis=1, keepdims=True) + 1e-8)
    cosine = directions @ directions.T
    np.fill_diagonal(cosine, 0.0)
    for row in cosine:
        (alike,) = np.nonzero(row > threshold)
        row[alike[-1] if len(alike) else 0] = 0.0
    return softmax(cosine.mean(axis=0))


def scores(queries: Floats, keys: Floats, *, share: float, kernel: int, threshold: float) -> Floats:
    """[n - window] for the group's recent queries [G, window, H] and a head's keys [n, H]."""
    window = queries.shape[1]
    logits = (queries @ keys[:-window].T / np.sqrt(keys.shape[1])).max(axis=0)  # [window, n - window]
    attention = softmax(logits).mean(axis=0)
    half = kernel // 2
    pooled = np.array([attention[max(0, j - half) : j + half + 1].max() for j in range(len(attention))])
    return share * pooled - (1 - share) * redundancy(keys, threshold)[:-window]


def kept(score: Floats, window: int, capacity: int) -> Ints:
    """Kept slots, ascending, of a head with `window` slots more than there are scores."""
    best = np.argsort(-score, kind="stable")[: capacity - window]
    return np.sort(np.concatenate([best, np.arange(len(score), len(score) + window)]))

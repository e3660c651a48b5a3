"""SnapKV (arXiv 2404.14469) as NumPy, in the form of the golden files in tests/golden.

The score of a token before the window is its attention from the last `window` rows (full causal softmax), mean over the
rows, average-pooled over `kernel` neighbouring tokens (odd; zeros outside, always divided by `kernel`), mean over the G
query heads. The window itself is always kept. Equal scores: the earlier token.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints, causal_attention


def snapkv_scores(q: Floats, k: Floats, window: int, kernel: int) -> Floats:
    """[K, l - window] for q [N, l, H], k [K, l, H]."""
    heads, length, _ = q.shape
    received = causal_attention(q, k)[:, -window:, :-window].mean(axis=1)  # [N, l - window]
    pooled = np.zeros_like(received)
    for j in range(length - window):
        near = range(max(0, j - kernel // 2), min(length - window, j + kernel // 2 + 1))
        pooled[:, j] = received[:, near].sum(axis=1) / kernel
    return pooled.reshape(k.shape[0], -1, length - window).mean(axis=1)


def snapkv_prefill(q: Floats, k: Floats, *, capacity: int, window: int, kernel: int) -> list[Ints]:
    """Kept prompt indices per KV head; capacity >= window."""
    length = k.shape[1]
    kept = []
    for score in snapkv_scores(q, k, window, kernel):
        best = np.argsort(-score, kind="stable")[: capacity - window]
        kept.append(np.sort(np.concatenate([best, np.arange(length - window, length)])))
    return kept

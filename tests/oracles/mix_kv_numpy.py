"""MixKV (arXiv 2510.20707) as NumPy loops: one layer, one batch row.

Decisions
---------
 1. The last `window` tokens are always kept. All that follows ranks the tokens before them.
 2. Attention a_j is SnapKV's: pooled attention of the window's rows, mean over the G query heads.
 3. Diversity d_j = -(unit key j) . (mean of the unit keys of all tokens of the KV head, the window's too), keys as
    cached. Norm v_j = |value j|.
 4. d and v are each rescaled to 0..1 by their smallest and largest value, then multiplied by mean(a) / their mean;
    1e-8 is added to both divisors.
 5. r = mean cosine between the keys of two different tokens of the KV head, over all ordered pairs.
 6. Score = r d + (1 - r) (a + v). Equal scores: the earlier token. Modality plays no part.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints, unit
from tests.oracles.snapkv_numpy import snapkv_scores


def mix_kv_scores(q: Floats, k: Floats, v: Floats, window: int, kernel: int) -> Floats:
    """[K, l - window] for q [N, l, H], k and v [K, l, H]."""
    scores = []
    for attention, keys, values in zip(snapkv_scores(q, k, window, kernel), unit(k), v, strict=True):
        cosines = keys @ keys.T
        pairs = [cosines[i, j] for i, j in np.ndindex(cosines.shape) if i != j]
        redundancy = float(np.mean(pairs))
        diversity = np.array([-key @ keys.mean(axis=0) for key in keys[:-window]])
        norm = np.array([np.sqrt(value @ value) for value in values[:-window]])
        diversity, norm = (_as_large(x, attention) for x in (diversity, norm))
        scores.append(redundancy * diversity + (1 - redundancy) * (attention + norm))
    return np.array(scores)


def _as_large(x: Floats, attention: Floats) -> Floats:
    share = (x - x.min()) / (x.max() - x.min() + 1e-8)
    return share * attention.mean() / (share.mean() + 1e-8)


def mix_kv_prefill(
    q: Floats, k: Floats, v: Floats, *, capacity: int, window: int, kernel: int
) -> tuple[list[Ints], float]:
    """Kept prompt indices per KV head, and the smallest relative gap between a kept and a dropped score."""
    length, kept, margin = k.shape[1], [], 1.0
    for score in mix_kv_scores(q, k, v, window, kernel):
        order = np.argsort(-score, kind="stable")
        inside, outside = score[order[capacity - window - 1]], score[order[capacity - window]]
        margin = min(margin, (inside - outside) / abs(inside))
        kept.append(np.sort([*order[: capacity - window], *range(length - window, length)]))
    return kept, float(margin)

"""FastV (arXiv 2403.06764) as NumPy: which tokens each layer keeps.

Decisions
---------
 1. The first `filter_layer` layers keep everything.
 2. The score of a token is the attention of the prompt's last row to it in the last of these layers, mean over all
    query heads. Every later layer keeps all text and the media tokens of largest score, `total_budget` in all, the
    same in every layer and head. Equal scores: the earlier token.
 3. Each layer attends to the whole prompt while it is read; what is dropped is missing from then on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles.acckv_numpy import total_budget
from tests.oracles.acckv_scores import TEXT
from tests.oracles.attention_numpy import Floats, Ints


def fastv_prefill(
    attention: Sequence[Floats], modality: Ints, *, budget: float | int, filter_layer: int
) -> tuple[list[Ints], float]:
    """Kept prompt indices of each layer for [N, l, l] of each layer, and the relative gap at the edge of the choice."""
    length = len(modality)
    score = attention[filter_layer - 1][:, -1].mean(axis=0)
    text = [j for j in range(length) if modality[j] == TEXT]
    media = sorted((j for j in range(length) if modality[j] != TEXT), key=lambda j: (-score[j], j))
    more = total_budget(budget, length) - len(text)
    later = np.array(sorted(text + media[:more]))
    gap = 1 - score[media[more]] / score[media[more - 1]]
    return [np.arange(length) if layer < filter_layer else later for layer in range(len(attention))], float(gap)

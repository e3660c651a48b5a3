"""KeyDiff (arXiv 2504.15364) as NumPy, in the form of the golden files in tests/golden.

The score of a token is minus the cosine between its key, as cached, and the mean of all keys of its head, each of
length one. Equal scores: the earlier token.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats, Ints, unit


def keydiff_scores(k: Floats) -> Floats:
    """[K, l] for k [K, l, H]."""
    return np.array([-unit(keys) @ unit(unit(keys).mean(axis=0)) for keys in k])


def keydiff_prefill(k: Floats, capacity: int) -> list[Ints]:
    """Kept prompt indices per KV head."""
    return [np.sort(np.argsort(-score, kind="stable")[:capacity]) for score in keydiff_scores(k)]

"""LOOK-M (arXiv 2406.18139) as NumPy loops: one layer, one batch row.

Decisions
---------
 1. Of B slots (`total_budget`), text takes what it needs, wherever it stands. round(recent * B) is the number of
    recent tokens, half to even; of these, those that are no text are kept, newest first, as long as there are slots.
    The rest of B goes to the tokens with the largest column sums of attention over all rows, mean over the G query
    heads. Equal sums: the earlier token.
 2. Every token that is not kept joins the kept one (text included) of its KV head whose key has the largest cosine with
    its own, keys as cached. Values join by the keys' choice.
 3. With e_1..e_n joined to c, the slot holds the mean of c and n terms: e_i (averaged), (e_i + c) / 2 (pivotal),
    cosine(key e_i, key c) e_i (weighted).
 4. Index and modality are those of c; multiplicity is 1 + n.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.oracles.acckv_numpy import total_budget
from tests.oracles.acckv_scores import TEXT
from tests.oracles.attention_numpy import Floats, Ints, unit
from tests.oracles.every_n_numpy import column_mass


class Kept(NamedTuple):
    """One KV head: index [n], keys and values [n, H], multiplicity [n]."""

    index: Ints
    keys: Floats
    values: Floats
    multiplicity: Ints


def look_m_prefill(
    q: Floats, k: Floats, v: Floats, modality: Ints, *, budget: float | int, recent: float, merge: str
) -> tuple[list[Kept], float]:
    """What every KV head keeps, and the smallest distance of a choice from another one."""
    length = len(modality)
    slots = total_budget(budget, length)
    heads, margin = [], 1.0
    for sums, keys, values in zip(column_mass(q, k), k, v, strict=True):
        chosen = [j for j in range(length) if modality[j] == TEXT]
        for j in range(length - 1, length - 1 - round(recent * slots), -1):
            if j not in chosen and len(chosen) < slots:
                chosen.append(j)
        others = sorted((j for j in range(length) if j not in chosen), key=lambda j: (-sums[j], j))
        more = slots - len(chosen)
        if 0 < more < len(others):
            margin = min(margin, 1 - sums[others[more]] / sums[others[more - 1]])
        chosen = sorted(chosen + others[:more])
        held = {c: [] for c in chosen}
        for j in (j for j in range(length) if j not in held):
            cosines = sorted(((float(unit(keys[j]) @ unit(keys[c])), -c) for c in chosen), reverse=True)
            margin = min(margin, cosines[0][0] - cosines[1][0])
            held[-cosines[0][1]].append((j, cosines[0][0]))
        merged = [[_merged(x, c, held[c], merge) for c in chosen] for x in (keys, values)]
        count = np.array([1 + len(held[c]) for c in chosen])
        heads.append(Kept(np.array(chosen), np.array(merged[0]), np.array(merged[1]), count))
    return heads, float(margin)


def _merged(x: Floats, kept: int, joined: list[tuple[int, float]], merge: str) -> Floats:
    terms = [x[kept]]
    for j, cosine in joined:
        terms.append({"averaged": x[j], "pivotal": (x[j] + x[kept]) / 2, "weighted": cosine * x[j]}[merge])
    return np.mean(terms, axis=0)

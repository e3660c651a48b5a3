"""AccKV's statistics in NumPy loops; the decision numbers are those of acckv_numpy.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.oracles.attention_numpy import Floats, Ints

TEXT, VIDEO, AUDIO = 0, 1, 2
AV = (VIDEO, AUDIO)


def redistribution(length: int, counted: NDArray[np.bool_], n_min: int, exclude_diagonal: bool) -> Floats:
    """The factor (i + 1) / max(n_min, n_j) on counted rows and seen columns, else 0: [l, l] (decision 1)."""
    factor = np.zeros((length, length))
    for j in range(length):
        rows = [i for i in range(j + exclude_diagonal, length) if counted[i]]
        for i in rows:
            factor[i, j] = (i + 1) / max(n_min, len(rows))
    return factor


def modality_mass(attention: Floats, modality: Ints, divisor_rows: Ints | None, n_min: int) -> Floats:
    """S [2] (decision 3); `divisor_rows` [l] is n_j for the redistributed form, None for the raw one."""
    mass = np.zeros(2)
    for slot, m in enumerate(AV):
        columns = np.flatnonzero(modality == m)
        for j in columns:
            for i in np.flatnonzero(modality == TEXT):
                if i > j:
                    factor = 1.0 if divisor_rows is None else (i + 1) / max(n_min, divisor_rows[j])
                    mass[slot] += attention[:, i, j].mean() * factor / len(columns)
    return mass


def modality_weight(mass: Floats, modality: Ints) -> Floats:
    """W [2] (decision 4)."""
    present = [bool(np.any(modality == m)) for m in AV]
    if present[0] != present[1]:
        return np.array([float(p) for p in present])
    total = mass.sum()
    return np.array([0.5, 0.5]) if total == 0 else mass / total

"""AdaKV, CriticalKV, AudioKV's smoothing and PureKV's estimate around inner policies, as NumPy (float64).

Decisions: a score is infinite where a token must stay. AdaKV's floor and CriticalKV's first part are rounded down. In
AdaKV a head stops at `most` times the budget (rounded half to even), and what it leaves goes to the others. Frequencies
up to the first bin by which the energy is reached pass whole, those beyond fade out by half a cosine. Equal scores: the
earlier head, then the earlier token.
"""

from __future__ import annotations

import numpy as np

from tests.oracles.attention_numpy import Floats
from tests.oracles.cases import AUDIO, TEXT, VIDEO


def best(score: Floats, count: int) -> np.ndarray:
    """True for the `count` best of one head [l]."""
    kept = np.zeros(len(score), bool)
    kept[np.argsort(-score, kind="stable")[: max(0, count)]] = True
    return kept


def ada_kv(scores: Floats, budget: int, *, floor: float, most: float) -> np.ndarray:
    """[K, l] which tokens of each head stay."""
    heads, length = scores.shape
    cap = min(length, round(most * budget))
    kept = np.stack([best(score, int(floor * budget)) for score in scores])
    order = sorted(np.ndindex(heads, length), key=lambda at: -scores[at])
    for head, token in order:
        if kept.sum() < heads * budget and kept[head].sum() < cap:
            kept[head, token] = True
    return kept


def output_norms(v: Floats, w_o: Floats) -> Floats:
    """[K, l] L1 norms of W_O v for v [K, l, H], w_o [N, H, D]; mean over query heads."""
    group = len(w_o) // len(v)
    norms = [np.abs(v[n // group] @ w_o[n]).sum(-1) for n in range(len(w_o))]
    return np.stack(norms).reshape(len(v), group, -1).mean(1)


def critical_kv(scores: Floats, norms: Floats, counts: list[int], *, first_share: float = 0.5) -> np.ndarray:
    """[K, l] which tokens stay, `counts[k]` of head k."""
    kept = []
    for score, norm, count in zip(scores, norms, counts, strict=True):
        first = best(score, int(first_share * count))
        product = np.where(np.isinf(score), score, (score + 1e-4) * norm)
        kept.append(first | best(np.where(first, -np.inf, product), count - first.sum()))
    return np.stack(kept)


def smoothed(score: Floats, *, energy: float = 0.7, mix: float = 0.5, roll_off: float = 0.05) -> Floats:
    """[l] scores of one head."""
    finite = np.isfinite(score)
    signal = score[finite]
    spectrum = np.fft.rfft(signal)
    total = np.cumsum(np.abs(spectrum) ** 2)
    cutoff = int(np.flatnonzero(total >= energy * total[-1])[0])
    width = roll_off * len(signal) / 2
    beyond = np.arange(len(spectrum)) - cutoff
    fade = np.where(beyond <= 0, 1.0, 0.0)
    inside = (beyond > 0) & (beyond < width)
    fade[inside] = 0.5 + 0.5 * np.cos(np.pi * beyond[inside] / width)
    result = score.copy()
    result[finite] = (1 - mix) * signal + mix * np.fft.irfft(spectrum * fade, len(signal))
    return result


class Inner:
    """An inner policy: scores [K, l] by attention, and what it keeps by scores."""

    def __init__(self, name: str, modality: np.ndarray, budget: int) -> None:
        self.name, self.modality, self.budget = name, modality, budget

    def scores(self, attention: Floats, k: Floats) -> Floats:
        """By attention [K, l, l], mean over the query heads of a group, and keys [K, l, H]."""
        length = len(self.modality)
        if self.name == "knorm":
            return -np.linalg.norm(k, axis=-1)
        if self.name == "h2o":
            recent = np.arange(length) >= length - round(0.5 * self.budget)
            return np.where(recent, np.inf, attention.sum(1))
        if self.name == "snapkv":
            score = np.pad(attention[:, -8:, :-8].mean(1), ((0, 0), (2, 10)))
            score = np.stack([score[:, i : i + length] for i in range(5)]).mean(0)
            return np.where(np.arange(length) >= length - 8, np.inf, score)
        text = self.modality == TEXT
        later = np.cumsum(text[::-1])[::-1]
        position = np.arange(1, length + 1) * text
        score = np.einsum("kij,i->kj", attention, position) / np.maximum(later, 64)
        return np.where(text, np.inf, score)

    def select(self, scores: Floats, attention: Floats, protected: np.ndarray) -> np.ndarray:
        """[K, l] which tokens stay; those that are protected do, and acckv_plus takes them for text."""
        scores = np.where(protected, np.inf, scores)
        if self.name != "acckv_plus":
            return np.stack([best(score, self.budget) for score in scores])
        kinds = [(self.modality == kind) & ~protected for kind in (VIDEO, AUDIO)]
        sums = attention[:, self.modality == TEXT].sum(1)
        weight = np.array([sums[:, self.modality == kind].mean() for kind in (VIDEO, AUDIO)])
        video, audio = (int(kind.sum()) for kind in kinds)
        free = self.budget - (len(self.modality) - video - audio)
        slots = int(np.clip(np.round(weight[0] / weight.sum() * free), 1, free - 1))
        slots = int(np.clip(slots, free - audio, video))
        return np.stack(
            [
                ~(kinds[0] | kinds[1])
                | best(np.where(kinds[0], score, -np.inf), slots)
                | best(np.where(kinds[1], score, -np.inf), free - slots)
                for score in scores
            ]
        )

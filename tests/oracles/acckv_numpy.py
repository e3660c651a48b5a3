"""AccKV in plain float64 NumPy: one layer, one batch row, written from the design page alone.

Nothing here is fast and nothing is clever: the l x l attention matrix exists, heads are Python loops. It is the
yardstick for the JAX policy, so where the design page leaves a choice open the choice is written down here.

Notation: l prompt tokens; N query heads; K KV heads; G = N / K; query head h reads KV head h // G; Tx, Vd, Au the index
sets of text (0), video (1), audio (2); AV = Vd + Au; A[h, i, j] causal softmax of q.k / sqrt(H); s[k, j] token score.

Decisions
---------
Scores
 1. Counted rows R: all rows, or the text rows (`rows="text"`). r_i = i + 1 for i in R, else 0, with i the 0-based
    position in the unpadded row. n_j = number of rows i in R with i >= j; with `exclude_diagonal` i > j, and the
    diagonal term A[j, j] leaves the sum as well (the other weights stay as they are).
    s[h, j] = sum_i r_i A[h, i, j] / max(n_min, n_j), n_min >= 1 (so a column without rows has s = 0).
 2. s[k, j] = mean of s[h, j] over the G query heads of KV head k. Scores of text columns are computed, never used.
 3. S_m = mean over j in m, and over all N query heads, of sum_{i in Tx, i > j} X[h, i, j], whatever `rows` is.
    `raw`: X = A. `redistributed`: X = A * (i + 1) / max(n_min, n_j) with the n_j of decision 1 (so of `rows`).
 4. W_m = S_m / (S_Vd + S_Au). One modality empty: the other has W = 1. S_Vd + S_Au == 0, or both empty: W = 1/2 each.
    A modality that text cannot see while the other is seen has W = 0.
 5. The high-priority modality is the larger W. Exactly equal W (no text row after the media): no modality is high
    priority, so there is no gate and no refill; a tie is never settled in favour of video.
Budget
 6. `round` is Python's (half to even, on the float64 value) everywhere. B = round(budget * l) for a float in (0, 1],
    B = budget for an int >= 1; then B = min(B, l). B_av = B - |Tx|.
 7. The smallest budget is |Tx| + min(|AV|, b_min), b_min = 1 by default; with `summary` b_min is at least the number of
    non-empty AV modalities. Below it: ValueError that names it. A prompt of text alone therefore needs B = l.
 8. B_av >= |AV|: identity. Nothing is merged, and the gate does not run: a full budget equals no policy.
 9. `summary` slots count inside B: the selection gets B_sel = B_av - (number of non-empty AV modalities). For the other
    merges B_sel = B_av. If a modality then loses no token its summary slot does not exist, so B is an upper bound.
Selection (per KV head; equal scores: the earlier token wins, as jax.lax.top_k does)
10. Floor f_m = min(|m|, B_sel // 2, max(1, round(floor * B_sel))); 0 if floor == 0. 0 <= floor <= 0.5.
11. `joint`: each modality first takes its own top f_m by s (not W * s, so W = 0 is harmless); the rest of B_sel goes to
    the best W_m * s over both modalities (floor tokens as +inf in one top-k).
12. `weighted`: k_Vd = round(W_Vd * B_sel), `proportional`: k_Vd = round(B_sel * |Vd| / |AV|). Clip it to [lo, hi]:
    g_m = min(k_min, |m|, B_sel // 2), lo = max(g_Vd, B_sel - |Au|), hi = min(|Vd|, B_sel - g_Au). k_Au = B_sel - k_Vd, so
    every split uses the whole budget. Then the top k_m of s inside m. k_m is per layer, the choice inside m per KV head.
Merge (keys and values by one assignment, per KV head)
13. `pivot`: each unselected AV token goes to the selected token of its own modality with the largest cosine (equal: the
    earlier one). No selected token in that modality: it is dropped. Text is never a pivot. The slot becomes the plain
    mean of the pivot and all that joined it, K as cached (rotated), V likewise; multiplicity 1 + number joined; index and
    modality are the pivot's. Cosine: x / max(|x|, 1e-6).
14. `cross_modal_merge`: the candidates are the selected AV tokens of both modalities (text still not). Only with
    `pivot`, else ValueError.
15. `summary`: per modality one slot = mean K and mean V of its unselected tokens, multiplicity = their number, index = the
    last of them in time (a slot never precedes a token it holds); it takes its place in time order.
Gate (after the merge, per KV head)
16. It runs if both modalities are non-empty, one is high priority (5) and B_av < |AV| (8). The slots tested are all
    low-priority slots: pivots with their merged key, and the low-priority summary slot. A slot that is dropped takes what
    was merged into it along.
17. c = (unit merged key) . (mean of the unit keys of all high-priority tokens of the prompt, selected or not, unmerged).
18. `threshold`: keep c >= tau. `centred`: the same after subtracting, from merged slot keys and from high-priority keys,
    the plain mean of all AV keys of the prompt (before the units are taken). `quantile`: drop the round(quantile * n_low)
    slots of smallest c, n_low = low-priority slots of this KV head (equal c: the later one goes first).
19. `unrotated_keys`: all cosines (13, 17, 18) use these keys, merged by the same assignment; the cached keys are what is
    stored.
20. `floor_after_gate`: if fewer than min(f_low, selected low-priority tokens) of the low-priority *token* slots survive
    (a summary slot does not count and is not restored), dropped ones return, largest s first (equal: earlier), until that
    many are kept. f_low is decision 10's for every split.
21. `refill` (after 20): for each slot dropped, the next best high-priority token by s (equal: earlier) that was not
    selected, as long as there are any. It enters as itself, multiplicity 1, and leaves the pivot or summary it had joined;
    the assignment of all others stays, nothing joins a refilled token, c is not computed again. A summary slot whose
    tokens have all left does not exist.
Result
22. All text, the high-priority slots and the surviving low-priority slots by original index. Counts differ per KV head only
    through the gate (and through summary slots).
23. Log-multiplicity is a matter of decode attention, not of this function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.oracles.acckv_scores import AV, TEXT, VIDEO, AUDIO, modality_mass, modality_weight, redistribution
from tests.oracles.attention_numpy import Floats, Ints, causal_attention, unit


@dataclass(frozen=True)
class HeadCache:
    """What one KV head keeps, in time order.

    Attributes:
      index: [n] original token indices.
      keys: [n, H].
      values: [n, H].
      multiplicity: [n] prompt tokens held by each slot.
      modality: [n].
      is_summary: [n] True for a summary slot.
    """

    index: Ints
    keys: Floats
    values: Floats
    multiplicity: Ints
    modality: Ints
    is_summary: NDArray[np.bool_]


@dataclass
class Trace:
    """The result per KV head, and everything on the way to it.

    `margin` is the smallest distance of any discrete decision from its turning point (relative for scores, absolute for
    cosines, W and roundings): a float32 implementation can only be held to the same slots where it is well above 1e-6.
    """

    heads: list[HeadCache]
    attention: Floats  # A [N, l, l]
    token_score: Floats  # s [K, l]
    modality_mass: Floats  # S [2], video then audio
    weight: Floats  # W [2]
    priority: int | None
    weighted_score: Floats  # W_m * s [K, l]; text columns hold s
    budget: int
    selected: list[Ints] = field(default_factory=list)  # per KV head, before the gate, AV only
    gate_cosine: list[dict[int, float]] = field(default_factory=list)  # per KV head: index -> c of low-priority slots
    dropped: list[Ints] = field(default_factory=list)  # per KV head, indices of slots the gate removed for good
    refilled: list[Ints] = field(default_factory=list)
    margin: float = math.inf

    def note(self, distance: float) -> None:
        """Record the distance of one decision from its turning point."""
        self.margin = min(self.margin, abs(float(distance)))


def total_budget(budget: float | int, length: int) -> int:
    """B (decision 6)."""
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ValueError(f"A fractional budget must lie in (0, 1], got {budget}.")
        return min(round(budget * length), length)
    if budget < 1:
        raise ValueError(f"A budget in slots must be at least 1, got {budget}.")
    return min(budget, length)


def best(scores: Floats, candidates: Ints, count: int, trace: Trace) -> Ints:
    """The `count` candidates of largest score, equal scores to the earlier token, in time order."""
    order = sorted(candidates.tolist(), key=lambda j: (-scores[j], j))
    if 0 < count < len(order):
        inside, outside = scores[order[count - 1]], scores[order[count]]
        if math.isfinite(inside) and not inside == outside == 0:
            trace.note((inside - outside) / max(abs(inside), 1e-30))
    return np.array(sorted(order[:count]), dtype=np.int64)


def select(
    split: str,
    trace: Trace,
    head: int,
    modality: Ints,
    slots: int,
    floors: dict[int, int],
    k_min: int,
) -> Ints:
    """The AV tokens this KV head keeps before the gate (decisions 10-12), in time order."""
    score = trace.token_score[head]
    members = {m: np.flatnonzero(modality == m) for m in AV}
    if split == "joint":
        ranked = trace.weighted_score[head].copy()
        for m in AV:
            ranked[best(score, members[m], floors[m], trace)] = math.inf
        return best(ranked, np.flatnonzero(modality != TEXT), slots, trace)
    video, audio = len(members[VIDEO]), len(members[AUDIO])
    if split == "weighted":
        exact = float(trace.weight[0] * slots)
        if 0 < trace.weight[0] < 1 and trace.weight[0] != 0.5:
            trace.note(abs(exact - math.floor(exact) - 0.5) / slots)
    elif split == "proportional":
        exact = slots * video / (video + audio)
    else:
        raise ValueError(f"Unknown split {split!r}: use joint, weighted or proportional.")
    low = max(min(k_min, video, slots // 2), slots - audio)
    high = min(video, slots - min(k_min, audio, slots // 2))
    k_video = min(max(round(exact), low), high)
    chosen = [best(score, members[VIDEO], k_video, trace), best(score, members[AUDIO], slots - k_video, trace)]
    return np.sort(np.concatenate(chosen))


def assign(keys: Floats, modality: Ints, selected: Ints, cross: bool, trace: Trace) -> dict[int, int]:
    """Evicted AV token -> the selected token it joins (decisions 13, 14)."""
    units = unit(keys)
    joined = {}
    for j in np.flatnonzero(modality != TEXT).tolist():
        pivots = [p for p in selected.tolist() if cross or modality[p] == modality[j]]
        if j in selected or not pivots:
            continue
        cosines = sorted(((float(units[j] @ units[p]), -p) for p in pivots), reverse=True)
        if len(cosines) > 1:
            trace.note(cosines[0][0] - cosines[1][0])
        joined[j] = -cosines[0][1]
    return joined


@dataclass
class Slot:
    """A slot in the making: the prompt tokens it holds; a pivot is named by its own token, a summary by its last."""

    members: list[int]
    modality: int
    pivot: int | None = None

    @property
    def index(self) -> int:
        return max(self.members) if self.pivot is None else self.pivot

    def mean(self, x: Floats) -> Floats:
        return np.mean([x[j] for j in self.members], axis=0)


def merged_slots(merge: str, keys: Floats, modality: Ints, selected: Ints, cross: bool, trace: Trace) -> list[Slot]:
    """The AV slots of one KV head before the gate (decisions 13-15)."""
    slots = {int(p): Slot([int(p)], int(modality[p]), int(p)) for p in selected}
    if merge == "pivot":
        for j, pivot in assign(keys, modality, selected, cross, trace).items():
            slots[pivot].members.append(j)
        return list(slots.values())
    summaries = []
    if merge == "summary":
        for m in AV:
            evicted = [j for j in np.flatnonzero(modality == m).tolist() if j not in slots]
            if evicted:
                summaries.append(Slot(evicted, m))
    return list(slots.values()) + summaries


def gate_drops(
    gate: str, tau: float, quantile: float, slots: list[Slot], keys: Floats, modality: Ints, high: int, trace: Trace
) -> tuple[list[Slot], dict[int, float]]:
    """The low-priority slots the gate would drop and c of all low-priority slots (decisions 16-19)."""
    centre = keys[modality != TEXT].mean(axis=0) if gate == "centred" else np.zeros(keys.shape[1])
    direction = unit(keys[modality == high] - centre).mean(axis=0)
    low = sorted((slot for slot in slots if slot.modality != high), key=lambda slot: slot.index)
    cosine = {slot.index: float(unit(slot.mean(keys) - centre) @ direction) for slot in low}
    if gate == "quantile":
        count = round(quantile * len(low))
        order = sorted(low, key=lambda slot: (cosine[slot.index], -slot.index))
        if 0 < count < len(order):
            trace.note(cosine[order[count].index] - cosine[order[count - 1].index])
        return order[:count], cosine
    if gate not in ("threshold", "centred"):
        raise ValueError(f"Unknown gate {gate!r}: use threshold, quantile, centred or none.")
    for c in cosine.values():
        trace.note(c - tau)
    return [slot for slot in low if cosine[slot.index] < tau], cosine


def restore_floor(dropped: list[Slot], kept: list[Slot], low: int, need: int, score: Floats, trace: Trace) -> list[Slot]:
    """The slots that stay dropped once the low-priority modality has its floor again (decision 20)."""
    tokens = np.array([slot.pivot for slot in dropped if slot.pivot is not None], dtype=np.int64)
    surviving = sum(slot.modality == low and slot.pivot is not None for slot in kept)
    back = set(best(score, tokens, max(0, need - surviving), trace).tolist())
    return [slot for slot in dropped if slot.pivot is None or slot.pivot not in back]


def acckv_oracle(
    q: Floats,
    k: Floats,
    v: Floats,
    modality: Ints,
    *,
    budget: float | int,
    rows: str = "all",
    n_min: int = 1,
    exclude_diagonal: bool = False,
    priority_stat: str = "raw",
    split: str = "joint",
    floor: float = 0.05,
    k_min: int = 1,
    b_min: int = 1,
    merge: str = "pivot",
    cross_modal_merge: bool = False,
    gate: str = "threshold",
    tau: float = 0.9,
    quantile: float = 0.25,
    refill: bool = False,
    floor_after_gate: bool = False,
    unrotated_keys: Floats | None = None,
) -> Trace:
    """Compress one layer's cache of one unpadded prompt; see the module docstring for every choice.

    Args:
      q: [N, l, H] queries after RoPE.
      k: [K, l, H] keys after RoPE.
      v: [K, l, H] values.
      modality: [l] 0 text, 1 video, 2 audio.
      budget: a float is a fraction of the prompt, an int is slots.
      unrotated_keys: [K, l, H] keys before RoPE; if given, all cosines use them.

    Raises:
      ValueError: for an unknown option and for a budget that cannot hold the text.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    modality = np.asarray(modality, dtype=np.int64)
    if rows not in ("all", "text") or priority_stat not in ("raw", "redistributed"):
        raise ValueError("rows is all or text; priority_stat is raw or redistributed.")
    if merge not in ("pivot", "summary", "none") or (cross_modal_merge and merge != "pivot"):
        raise ValueError("merge is pivot, summary or none; cross_modal_merge needs merge='pivot'.")
    kv_heads, length, _ = k.shape
    group = q.shape[0] // kv_heads

    attention = causal_attention(q, k)
    counted = np.ones(length, dtype=bool) if rows == "all" else modality == TEXT
    factor = redistribution(length, counted, n_min, exclude_diagonal)
    per_query_head = (attention * factor).sum(axis=1)  # [N, l]
    score = per_query_head.reshape(kv_heads, group, length).mean(axis=1)
    counts = np.array([sum(counted[j + exclude_diagonal :]) for j in range(length)], dtype=np.int64)
    mass = modality_mass(attention, modality, counts if priority_stat == "redistributed" else None, n_min)
    weight = modality_weight(mass, modality)
    by_token = np.array([1.0, weight[0], weight[1]])[modality]
    trace = Trace(
        heads=[],
        attention=attention,
        token_score=score,
        modality_mass=mass,
        weight=weight,
        priority=None if weight[0] == weight[1] else AV[int(np.argmax(weight))],
        weighted_score=score * by_token,
        budget=total_budget(budget, length),
    )

    text = np.flatnonzero(modality == TEXT)
    media = np.flatnonzero(modality != TEXT)
    present = sum(bool(np.any(modality == m)) for m in AV)
    smallest = len(text) + min(len(media), max(b_min, present if merge == "summary" else 0))
    if trace.budget < smallest:
        raise ValueError(f"The budget is {trace.budget} slots; the smallest possible here is {smallest}.")
    full = trace.budget >= length
    reserved = present if merge == "summary" and not full else 0
    slots_av = trace.budget - len(text) - reserved
    floors = {
        m: min(int(np.sum(modality == m)), slots_av // 2, max(1, round(floor * slots_av))) if floor > 0 else 0 for m in AV
    }
    gated = gate != "none" and present == 2 and trace.priority is not None and not full
    if present == 2 and trace.priority is not None:
        trace.note(weight[0] - weight[1])

    for head in range(kv_heads):
        selected = media if full else select(split, trace, head, modality, slots_av, floors, k_min)
        cosine_keys = k[head] if unrotated_keys is None else np.asarray(unrotated_keys[head], dtype=np.float64)
        slots = merged_slots(merge, cosine_keys, modality, selected, cross_modal_merge, trace)
        dropped: list[Slot] = []
        refilled: list[int] = []
        trace.gate_cosine.append({})
        if gated and trace.priority is not None:
            high, low = trace.priority, VIDEO + AUDIO - trace.priority
            dropped, trace.gate_cosine[head] = gate_drops(
                gate, tau, quantile, slots, cosine_keys, modality, high, trace
            )
            if floor_after_gate:
                need = min(floors[low], int(np.sum(modality[selected] == low)))
                kept = [slot for slot in slots if slot not in dropped]
                dropped = restore_floor(dropped, kept, low, need, score[head], trace)
            slots = [slot for slot in slots if slot not in dropped]
            if refill:
                free = np.setdiff1d(np.flatnonzero(modality == high), selected)
                refilled = best(score[head], free, len(dropped), trace).tolist()
                for slot in slots:
                    slot.members = [j for j in slot.members if j not in refilled]
                slots = [slot for slot in slots if slot.members] + [Slot([j], high, j) for j in refilled]
        trace.selected.append(selected)
        trace.dropped.append(np.array(sorted(slot.index for slot in dropped), dtype=np.int64))
        trace.refilled.append(np.array(refilled, dtype=np.int64))
        slots = sorted(slots + [Slot([int(j)], TEXT, int(j)) for j in text], key=lambda slot: slot.index)
        trace.heads.append(
            HeadCache(
                index=np.array([slot.index for slot in slots], dtype=np.int64),
                keys=np.array([slot.mean(k[head]) for slot in slots]),
                values=np.array([slot.mean(v[head]) for slot in slots]),
                multiplicity=np.array([len(slot.members) for slot in slots], dtype=np.int64),
                modality=np.array([slot.modality for slot in slots], dtype=np.int64),
                is_summary=np.array([slot.pivot is None for slot in slots], dtype=bool),
            )
        )
    return trace

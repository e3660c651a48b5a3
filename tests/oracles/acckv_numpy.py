"""AccKV in plain float64 NumPy: one layer, one batch row.

Nothing here is fast and nothing is clever: the l x l attention matrix exists, heads are Python loops. It is the
yardstick for the JAX policy, so where the paper leaves a choice open the choice is written down here.

Notation: l prompt tokens; N query heads; K KV heads; G = N / K; query head h reads KV head h // G; Tx, Vd, Au the index
sets of text (0), video (1), audio (2); AV = Vd + Au; A[h, i, j] causal softmax of q.k / sqrt(H); s[k, j] token score.

Decisions
---------
Scores
 1. Counted rows R: all rows, or the text rows (`rows="text"`). r_i = i + 1 for i in R, else 0, with i the 0-based
    position in the unpadded row. n_j = number of rows i in R with i >= j; with `exclude_diagonal` i > j, and the
    diagonal term A[j, j] leaves the sum as well (the other weights stay as they are). s[h, j] = sum_i r_i A[h, i, j]
    / max(n_min, n_j), n_min >= 1 (so a column without rows has s = 0).
 2. s[k, j] = mean of s[h, j] over the G query heads of KV head k. Scores of text columns are computed, never used.
 3. S_m = mean over j in m, and over all N query heads, of sum_{i in Tx, i > j} X[h, i, j], whatever `rows` is. `raw`:
    X = A. `redistributed`: X = A * (i + 1) / max(n_min, n_j) with the n_j of decision 1 (so of `rows`).
 4. W_m = S_m / (S_Vd + S_Au). One modality empty: the other has W = 1. S_Vd + S_Au == 0, or both empty: W = 1/2 each.
    A modality that text cannot see while the other is seen has W = 0.
 5. The high-priority modality is the larger W. Exactly equal W (no text row after the media): no modality is high
    priority, so there is no gate and no refill; a tie is never settled in favour of video.
Budget
 6. `round` is Python's (half to even, on the float64 value) everywhere. B = round(budget * l) for a float in (0, 1],
    B = budget for an int >= 1; then B = min(B, l). B_av = B - |Tx|.
 7. The smallest budget is |Tx| + min(|AV|, b_min), b_min = 1 by default; with `summary` b_min is at least the number
    of non-empty AV modalities. Below it: ValueError that names it. A prompt of text alone therefore needs B = l.
 8. B_av >= |AV|: identity. Nothing is merged, and the gate does not run: a full budget equals no policy.
 9. `summary` slots count inside B: the selection gets B_sel = B_av - (number of non-empty AV modalities). For the
    other merges B_sel = B_av. If a modality then loses no token its summary slot does not exist, so B is an upper
    bound.
Selection (per KV head; equal scores: the earlier token wins, as jax.lax.top_k does)
10. Floor f_m = min(|m|, B_sel // 2, max(1, round(floor * B_sel))); 0 if floor == 0. 0 <= floor <= 0.5.
11. `joint`: each modality first takes its own top f_m by s (not W * s, so W = 0 is harmless); the rest of B_sel goes
    to the best W_m * s over both modalities (floor tokens as +inf in one top-k).
12. `weighted`: k_Vd = round(W_Vd * B_sel), `proportional`: k_Vd = round(B_sel * |Vd| / |AV|). Clip it to [lo, hi]:
    g_m = min(k_min, |m|, B_sel // 2), lo = max(g_Vd, B_sel - |Au|), hi = min(|Vd|, B_sel - g_Au). k_Au = B_sel -
    k_Vd, so every split uses the whole budget. Then the top k_m of s inside m. k_m is per layer, the choice inside m
    per KV head.
Merge (keys and values by one assignment, per KV head)
13. `pivot`: each unselected AV token goes to the selected token of its own modality with the largest cosine (equal:
    the earlier one). No selected token in that modality: it is dropped. Text is never a pivot. The slot becomes the
    plain mean of the pivot and all that joined it, K as cached (rotated), V likewise; multiplicity 1 + number joined;
    index and modality are the pivot's. Cosine: x / max(|x|, 1e-6).
14. `cross_modal_merge`: the candidates are the selected AV tokens of both modalities (text still not). Only with
    `pivot`, else ValueError.
15. `summary`: per modality one slot = mean K and mean V of its unselected tokens, multiplicity = their number, index
    = the last of them in time (a slot never precedes a token it holds); it takes its place in time order.
Gate (after the merge, per KV head)
16. It runs if both modalities are non-empty, one is high priority (5) and B_av < |AV| (8). The slots tested are all
    low-priority slots: pivots with their merged key, and the low-priority summary slot. A slot that is dropped takes
    what was merged into it along.
17. c = (unit merged key) . (mean of the unit keys of all high-priority tokens of the prompt, selected or not,
    unmerged).
18. `threshold`: keep c >= tau. `centred`: the same after subtracting, from merged slot keys and from high-priority
    keys, the plain mean of all AV keys of the prompt (before the units are taken). `quantile`: drop the
    round(quantile * n_low) slots of smallest c, n_low = low-priority slots of this KV head (equal c: the later one
    goes first).
19. `unrotated_keys`: all cosines (13, 17, 18) use these keys, merged by the same assignment; the cached keys are what
    is stored.
20. `floor_after_gate`: if fewer than min(f_low, selected low-priority tokens) of the low-priority *token* slots
    survive (a summary slot does not count and is not restored), dropped ones return, largest s first (equal:
    earlier), until that many are kept. f_low is decision 10's for every split.
21. `refill` (after 20): for each slot dropped, the next best high-priority token by s (equal: earlier) that was not
    selected, as long as there are any. It enters as itself, multiplicity 1, and leaves the pivot or summary it had
    joined; the assignment of all others stays, nothing joins a refilled token, c is not computed again. A summary
    slot whose tokens have all left does not exist.
Result
22. All text, the high-priority slots and the surviving low-priority slots by original index. Counts differ per KV
    head only through the gate (and through summary slots).
23. Log-multiplicity is a matter of decode attention, not of this function.
"""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.acckv_scores import AUDIO, AV, TEXT, VIDEO, modality_mass, modality_weight, redistribution
from tests.oracles.acckv_slots import Slot, gate_drops, merged_slots, restore_floor
from tests.oracles.acckv_trace import HeadCache, Trace, best
from tests.oracles.attention_numpy import Floats, Ints, causal_attention


def total_budget(budget: float | int, length: int) -> int:
    """B (decision 6)."""
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ValueError(f"A fractional budget must lie in (0, 1], got {budget}.")
        return min(round(budget * length), length)
    if budget < 1:
        raise ValueError(f"A budget in slots must be at least 1, got {budget}.")
    return min(budget, length)


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
        m: min(int(np.sum(modality == m)), slots_av // 2, max(1, round(floor * slots_av))) if floor > 0 else 0
        for m in AV
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

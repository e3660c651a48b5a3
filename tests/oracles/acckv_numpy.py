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

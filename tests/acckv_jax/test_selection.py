"""Selection and merging at sizes of many blocks, against sorting and full cosine tables in NumPy."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from acckv_jax.merging import nearest
from acckv_jax.policies.acckv import _exact_share
from acckv_jax.selection import grouped_slots, top_k_mask

ROWS, HEADS, SLOTS, SIZE = 2, 3, 700, 16


def best_by_sorting(scores: np.ndarray, among: np.ndarray, count: np.ndarray) -> np.ndarray:
    chosen = np.zeros_like(among)
    for b, k in np.ndindex(among.shape[:2]):
        slots = np.flatnonzero(among[b, k])
        order = np.argsort(-scores[b, k, slots], kind="stable")
        chosen[b, k, slots[order[: max(0, count[b, k])]]] = True
    return chosen


@pytest.mark.parametrize("kind", ["normal", "ties", "extremes"])
def test_top_equals_a_stable_sort(kind):
    rng = np.random.default_rng(0)
    scores = {
        "normal": rng.standard_normal((ROWS, HEADS, SLOTS)),
        "ties": rng.integers(-2, 3, (ROWS, HEADS, SLOTS)) * 0.5,
        "extremes": rng.choice([np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], (ROWS, HEADS, SLOTS)),
    }[kind].astype(np.float32)
    # XLA flushes denormals to zero on some devices, and so does the comparison here.
    scores = np.where(np.abs(scores) < np.finfo(np.float32).tiny, 0.0, scores).astype(np.float32)
    among = rng.random((ROWS, HEADS, SLOTS)) < 0.7
    for count in ([[0, 1, 2], [SLOTS, -3, 100]], [[300, 489, 490], [7, 350, 699]]):
        ours = jax.jit(top_k_mask)(scores, among, jnp.asarray(count, jnp.int32))
        np.testing.assert_array_equal(ours, best_by_sorting(scores, among, np.array(count)))


def test_top_counts_by_row():
    scores, among = np.tile(np.arange(SLOTS, dtype=np.float32), (ROWS, HEADS, 1)), np.ones((ROWS, HEADS, SLOTS), bool)
    chosen = np.asarray(top_k_mask(jnp.asarray(scores), jnp.asarray(among), jnp.array([3, 5])))
    assert (chosen.sum(-1) == [[3] * HEADS, [5] * HEADS]).all() and chosen[..., -3:].all()


@pytest.mark.parametrize("sorted_by_group", [True, False])
@pytest.mark.parametrize("block", [64, 256])
def test_nearest_equals_a_table_of_cosines(sorted_by_group, block):
    rng = np.random.default_rng(1)
    pivots_number = 300
    keys = rng.standard_normal((ROWS, HEADS, SLOTS, SIZE)).astype(np.float32)
    pivots = rng.standard_normal((ROWS, HEADS, pivots_number, SIZE)).astype(np.float32)
    pivots[:, :, 200:220] = pivots[:, :, :20]  # equal pivots: the earlier one counts
    group = rng.integers(-1, 3, (ROWS, HEADS, SLOTS))
    pivot_group = rng.integers(-1, 2, (ROWS, HEADS, pivots_number))  # no pivot for group 2
    pivot_group[:, :, 200:220] = pivot_group[:, :, :20]
    if sorted_by_group:
        group, pivot_group = np.sort(group), np.sort(pivot_group)
    unit_keys, unit_pivots = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (keys, pivots))
    cosine = np.einsum("bksh,bkch->bksc", unit_keys, unit_pivots)
    allowed = (group[..., None] == pivot_group[:, :, None]) & (group[..., None] >= 0)
    expected = np.where(allowed.any(-1), np.where(allowed, cosine, -np.inf).argmax(-1), pivots_number)
    found = jax.jit(nearest, static_argnames="block")(
        keys, pivots, group.astype(np.int32), pivot_group.astype(np.int32), block=block
    )
    np.testing.assert_array_equal(found, expected)


def test_grouped_slots_lists_groups_in_order():
    group = jnp.array([[[1, 0, -1, 1, 0, 1]]], jnp.int32)
    slots, kept, place = grouped_slots(group, 2, 6)
    np.testing.assert_array_equal(slots[0, 0, :5], [1, 4, 0, 3, 5])
    np.testing.assert_array_equal(kept[0, 0], [True] * 5 + [False])
    np.testing.assert_array_equal(place[0, 0], [2, 0, 6, 3, 1, 4])


def test_shares_of_long_prompts_are_exact():
    rng = np.random.default_rng(2)
    video, audio = rng.integers(1, 100_000, (2, 1, 4000))
    audio[0, :2000] = video[0, :2000]  # quotients of a half
    free = rng.integers(0, video + audio)
    found = jax.jit(_exact_share)(*(jnp.asarray(x, jnp.int32) for x in (video, audio, free)))
    expected = [
        round(Fraction(int(f) * int(v), int(v + a))) for v, a, f in zip(video[0], audio[0], free[0], strict=True)
    ]
    np.testing.assert_array_equal(found[0], expected)

"""The oracles of the rivals and of pruning between steps, and the golden files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles.acckv_scores import AUDIO, TEXT, VIDEO
from tests.oracles.attention_numpy import causal_attention
from tests.oracles.cases import random_case, random_stream
from tests.oracles.every_n_numpy import column_mass, decode, floors_and_mass, prompt_slots
from tests.oracles.h2o_numpy import h2o_decode, h2o_prefill, heavy_and_recent
from tests.oracles.keydiff_numpy import keydiff_prefill, keydiff_scores
from tests.oracles.snapkv_numpy import snapkv_prefill, snapkv_scores
from tests.oracles.streaming_numpy import sinks_and_recent, streaming_prefill
from tests.oracles.tova_numpy import last_row, tova_prefill

GOLDEN = Path(__file__).parents[1] / "golden"


def start(length: int, steps: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return random_case(rng, layout="blocks", length=length), random_stream(rng, steps)


def test_h2o_keeps_the_recent_half_and_the_heaviest_of_the_rest():
    case, _ = start(40, 1)
    mass = column_mass(case.q, case.k)
    np.testing.assert_allclose(mass.sum(axis=1), 40)  # every row spends 1
    for kept, received in zip(h2o_prefill(case.q, case.k, budget=0.25), mass, strict=True):
        assert len(kept) == 10 and set(range(35, 40)) <= set(kept.tolist())
        chosen = [j for j in kept.tolist() if j < 35]
        assert min(received[chosen]) >= max(received[j] for j in range(35) if j not in chosen)


def test_decoding_without_eviction_is_dense_attention():
    case, stream = start(40, 12)
    everything = [np.arange(40)] * 2
    slots = prompt_slots(case.q, case.k, case.v, case.modality, everything)
    out = decode(slots, 40, *stream, select=heavy_and_recent(), capacity=100, every=4)
    q, k, v = (
        np.concatenate([a, b.swapaxes(0, 1)], axis=1) for a, b in zip((case.q, case.k, case.v), stream, strict=True)
    )
    dense = np.einsum("hij,hjd->ihd", causal_attention(q, k), np.repeat(v, 2, axis=0))
    np.testing.assert_allclose(out.outputs, dense[40:])
    for head, mass in zip(out.slots, column_mass(q, k), strict=True):
        np.testing.assert_allclose(head.mass, mass)


def test_h2o_decoding_evicts_one_slot_per_step():
    case, stream = start(40, 60)
    out = h2o_decode((case.q, case.k, case.v), stream, budget=12)
    before = h2o_prefill(case.q, case.k, budget=12)
    for step, kept in enumerate(out.kept):
        for head, now in enumerate(kept):
            assert len(now) == 12 and set(range(40 + step - 5, 40 + step + 1)) <= set(now.tolist())
            assert len(set(before[head].tolist()) - set(now.tolist())) == 1
        before = kept


def test_every_n_holds_the_capacity_for_2000_steps_and_its_heavy_hitters_change():
    case, stream = start(64, 2000, seed=1)
    slots = prompt_slots(case.q, case.k, case.v, case.modality, h2o_prefill(case.q, case.k, budget=32))
    out = decode(slots, 64, *stream, select=heavy_and_recent(), capacity=32, every=16)
    assert len(out.kept) == 125 and all(len(head) == 32 for kept in out.kept for head in kept)
    assert len({j for kept in out.kept for j in kept[0][:16].tolist()}) > 24
    assert out.margin > 1e-5


def test_text_floors_and_recent_tokens_hold_between_steps():
    case, stream = start(64, 40)
    text = np.flatnonzero(case.modality == TEXT)
    select = floors_and_mass(64, recent=4, floor=0.2)
    slots = prompt_slots(case.q, case.k, case.v, case.modality, [np.arange(64)] * 2)
    out = decode(slots, 64, *stream, select=select, capacity=len(text) + 24, every=8)
    for head in out.slots:
        assert len(head.index) == len(text) + 24
        assert np.isin(text, head.index).all() and np.isin(np.arange(100, 104), head.index).all()
        assert all(np.sum(head.modality == medium) >= 4 for medium in (VIDEO, AUDIO))
        assert np.sum(head.index >= 64) > 4, "generated tokens compete for the free slots"


def test_streaming_llm_matches_the_golden_file():
    with np.load(GOLDEN / "kvpress_streaming_llm.npz") as golden:
        for number in range(6):
            length, sinks = golden[f"length_sinks_{number}"].tolist()
            for kept in golden[f"kept_{number}"]:
                np.testing.assert_array_equal(streaming_prefill(length, len(kept), sinks), kept)


def test_streaming_llm_slides_during_decoding():
    case, stream = start(40, 9)
    slots = prompt_slots(case.q, case.k, case.v, case.modality, [streaming_prefill(40, 10)] * 2)
    out = decode(slots, 40, *stream, select=sinks_and_recent(), capacity=10, every=1)
    for step, kept in enumerate(out.kept):
        assert kept[0].tolist() == [0, 1, 2, 3, *range(40 + step - 5, 40 + step + 1)]


@pytest.mark.parametrize("number", range(8))
def test_snapkv_matches_the_golden_file(number: int):
    with np.load(GOLDEN / "kvpress_snapkv.npz") as golden:
        q, k = (golden[f"{name}_{number}"].astype(np.float64) for name in "qk")
        kept, (window, kernel) = golden[f"kept_{number}"], golden[f"window_kernel_{number}"].tolist()
    capacity = kept.shape[1]
    np.testing.assert_array_equal(snapkv_prefill(q, k, capacity=capacity, window=window, kernel=kernel), kept)
    ranked = -np.sort(-snapkv_scores(q, k, window, kernel), axis=1)
    inside, outside = ranked[:, capacity - window - 1], ranked[:, capacity - window]
    assert ((inside - outside) / inside).min() > 1e-3, "the last kept and first dropped token are too close to compare"


@pytest.mark.parametrize("number", range(6))
def test_keydiff_and_tova_match_the_golden_files(number: int):
    for name in ("keydiff", "tova"):
        with np.load(GOLDEN / f"kvpress_{name}.npz") as golden:
            q, k = (golden.get(f"{part}_{number}", np.zeros(0)).astype(np.float64) for part in "qk")
            kept = golden[f"kept_{number}"]
        capacity = kept.shape[1]
        if name == "keydiff":
            np.testing.assert_array_equal(keydiff_prefill(k, capacity), kept)
            scores, compared = keydiff_scores(k), capacity
        else:
            np.testing.assert_array_equal([tova_prefill(q, k, capacity)] * len(k), kept)
            scores, compared = last_row(q, k)[None, :-1], capacity - 1
        ranked = -np.sort(-scores, axis=1)
        inside, outside = ranked[:, compared - 1], ranked[:, compared]
        assert ((inside - outside) / abs(inside)).min() > 1e-3, "the last kept and first dropped token are too close"

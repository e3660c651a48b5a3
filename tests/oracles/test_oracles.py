"""The AccKV oracle itself: facts that hold by hand or by conservation, independent of any JAX code."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracles.acckv_numpy import acckv_oracle
from tests.oracles.acckv_scores import AUDIO, AV, TEXT, VIDEO
from tests.oracles.attention_numpy import causal_attention
from tests.oracles.cases import OPTION_SETS, Case, decided_cases, pad, random_case

GATED = [name for name, options in OPTION_SETS.items() if options.get("gate") != "none" and options["budget"] != 1.0]


def uniform(modality: list[int], **options):
    """The oracle where every row spreads its attention evenly: q = 0; keys and values are unit vectors of the token."""
    length = len(modality)
    eye = np.eye(length)[None]
    return acckv_oracle(np.zeros((2, length, length)), eye, eye, np.array(modality), **options)


def test_uniform_attention_scores_one_for_every_token():
    modality = [TEXT, VIDEO, AUDIO, TEXT, VIDEO, AUDIO, TEXT]
    np.testing.assert_allclose(uniform(modality, budget=1.0).token_score, 1.0)
    np.testing.assert_allclose(uniform(modality, budget=1.0, rows="text").token_score, 1.0)
    without_diagonal = uniform(modality, budget=1.0, exclude_diagonal=True).token_score[0]
    np.testing.assert_allclose(without_diagonal[:-1], 1.0)
    assert without_diagonal[-1] == 0
    damped = uniform(modality, budget=1.0, n_min=4).token_score[0]
    np.testing.assert_allclose(damped, [1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4])


@pytest.mark.parametrize(
    ("rows", "exclude_diagonal", "n_min"),
    [("all", False, 1), ("all", True, 16), ("text", False, 64), ("text", True, 1)],
)
def test_scores_are_one_weighted_column_sum(rows: str, exclude_diagonal: bool, n_min: int):
    case = random_case(np.random.default_rng(0), layout="interleaved", length=50)
    attention = causal_attention(case.q, case.k)
    counted = np.ones(50) if rows == "all" else (case.modality == TEXT).astype(float)
    if exclude_diagonal:
        attention = attention * (1 - np.eye(50))
    seen = np.cumsum(counted[::-1])[::-1] - exclude_diagonal * counted
    column = np.einsum("hij,i->hj", attention, counted * np.arange(1, 51)) / np.maximum(n_min, seen)
    trace = acckv_oracle(
        case.q, case.k, case.v, case.modality, budget=1.0, rows=rows, exclude_diagonal=exclude_diagonal, n_min=n_min
    )
    np.testing.assert_allclose(trace.token_score, column.reshape(2, 2, 50).mean(axis=1))


def test_modality_mass_counts_text_rows_after_the_media():
    # Text rows 3 and 5: the video token (1) is seen by both, the audio token (4) by row 5 only. Row i pays 1 / (i + 1).
    trace = uniform([TEXT, VIDEO, VIDEO, TEXT, AUDIO, TEXT], budget=1.0)
    np.testing.assert_allclose(trace.modality_mass, [1 / 4 + 1 / 6, 1 / 6])
    np.testing.assert_allclose(trace.weight, [5 / 7, 2 / 7])
    assert trace.priority == VIDEO
    # (i + 1) cancels; the divisors l - j are 5 and 4 for the video tokens, 2 for the audio token.
    redistributed = uniform([TEXT, VIDEO, VIDEO, TEXT, AUDIO, TEXT], budget=1.0, priority_stat="redistributed")
    np.testing.assert_allclose(redistributed.modality_mass, [(2 / 5 + 2 / 4) / 2, 1 / 2])
    assert redistributed.priority == AUDIO


def test_no_text_after_the_media_means_no_priority_and_no_gate():
    trace = uniform([TEXT, AUDIO, AUDIO, VIDEO, VIDEO], budget=3, tau=2.0)
    np.testing.assert_array_equal(trace.weight, [0.5, 0.5])
    assert trace.priority is None and len(trace.heads[0].index) == 3


def test_an_empty_modality_leaves_the_other_ungated():
    trace = uniform([TEXT, AUDIO, AUDIO, AUDIO, TEXT], budget=4, tau=2.0)
    np.testing.assert_array_equal(trace.weight, [0.0, 1.0])
    assert trace.heads[0].index.tolist() == [0, 1, 2, 4]


def test_a_prompt_worked_by_hand():
    # Keys: video 1, 2 near-parallel, 3 apart; audio 4, 5. Text 0 and 6. B = 5: B_av = 3, floor 1 each.
    keys = np.array([[[1, 0], [1, 0], [4, 1], [0, 1], [1, 1], [1, 0.5], [0, 1]]], dtype=float)
    values = np.arange(14, dtype=float).reshape(1, 7, 2)
    modality = np.array([TEXT, VIDEO, VIDEO, VIDEO, AUDIO, AUDIO, TEXT])
    options = {"budget": 5, "rows": "text", "tau": 0.5}
    trace = acckv_oracle(np.zeros((1, 7, 2)), keys, values, modality, **options)
    # Uniform attention: every media token is seen by row 6 alone, so scores, S and W tie: earliest tokens win, no gate.
    head = trace.heads[0]
    assert head.index.tolist() == [0, 1, 2, 4, 6] and trace.priority is None
    # Video 3 is orthogonal to 1, cosine 1/sqrt(17) to 2; audio 5 can only join 4.
    assert head.multiplicity.tolist() == [1, 1, 2, 2, 1]
    np.testing.assert_allclose(head.keys[2], [2, 1])
    np.testing.assert_allclose(head.values[2], [5, 6])
    np.testing.assert_allclose(head.values[3], [9, 10])
    # A text row between video and audio makes video high priority; audio's cosine decides.
    modality[3] = TEXT
    for tau, index in ((0.5, [0, 1, 3, 4, 6]), (0.9, [0, 1, 3, 6])):
        gated = acckv_oracle(np.zeros((1, 7, 2)), keys, values, modality, **{**options, "tau": tau})
        assert gated.priority == VIDEO and gated.heads[0].index.tolist() == index
        # Audio slot (1, 0.75) = unit (.8, .6); mean unit video key = ((1, 0) + (4, 1) / sqrt(17)) / 2.
        expected = (0.8 + (0.8 * 4 + 0.6) / np.sqrt(17)) / 2
        assert gated.gate_cosine[0] == {4: pytest.approx(expected)}
    refilled = acckv_oracle(np.zeros((1, 7, 2)), keys, values, modality, **options | {"tau": 0.9, "refill": True})
    assert refilled.heads[0].index.tolist() == [0, 1, 2, 3, 6]
    assert refilled.heads[0].multiplicity.tolist() == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", OPTION_SETS)
def test_what_every_option_keeps(name: str):
    options = OPTION_SETS[name]
    for case, trace in decided_cases(7, options, 6):
        text = np.flatnonzero(case.modality == TEXT)
        for h, head in enumerate(trace.heads):
            assert len(head.index) <= trace.budget
            assert np.all(np.diff(head.index) > 0)
            assert np.isin(text, head.index).all()
            own = head.modality == TEXT
            np.testing.assert_allclose(head.keys[own], case.k[h, text])
            np.testing.assert_allclose(head.values[own], case.v[h, text])
            assert (head.multiplicity[own] == 1).all()
            np.testing.assert_array_equal(head.modality, case.modality[head.index])
            assert head.multiplicity.sum() <= case.length
            if options.get("gate") == "none":
                assert len(head.index) == trace.budget
            elif options.get("refill"):
                all_in = np.isin(np.flatnonzero(case.modality == trace.priority), head.index[~head.is_summary]).all()
                assert len(head.index) == trace.budget or all_in


@pytest.mark.parametrize("merge", ["pivot", "summary"])
@pytest.mark.parametrize("refill", [False, True])
def test_merging_moves_content_and_loses_none_but_what_the_gate_drops(merge: str, refill: bool):
    options = {"budget": 0.5, "merge": merge, "tau": 0.93, "refill": refill}
    for case, trace in decided_cases(11, options, 6):
        for h, head in enumerate(trace.heads):
            for m in AV:
                held = head.modality == m
                total = (head.multiplicity[held][:, None] * head.values[held]).sum(axis=0)
                if m == trace.priority:
                    assert head.multiplicity[held].sum() == np.sum(case.modality == m)
                    np.testing.assert_allclose(total, case.v[h, case.modality == m].sum(axis=0))
                elif len(trace.dropped[h]):
                    assert head.multiplicity[held].sum() < np.sum(case.modality == m)


def test_a_full_budget_is_the_identity():
    case = random_case(np.random.default_rng(3), layout="blocks", length=60)
    for name in ("acckv", "acckv_plus", "summary", "centred"):
        options = {k: v for k, v in OPTION_SETS[name].items() if k != "budget"}
        for head, k, v in zip(
            acckv_oracle(case.q, case.k, case.v, case.modality, budget=60, **options).heads, case.k, case.v, strict=True
        ):
            np.testing.assert_array_equal(head.keys, k)
            np.testing.assert_array_equal(head.values, v)


@pytest.mark.complete
def test_the_gate_keeps_part_of_the_slots_in_most_cases():
    survival = []
    for name in GATED:
        for _, trace in decided_cases(5, OPTION_SETS[name], 6):
            tested = sum(len(cosine) for cosine in trace.gate_cosine)
            survival.append(1 - sum(len(dropped) for dropped in trace.dropped) / tested)
    partial = np.mean([(0.2 <= share <= 0.8) for share in survival])
    assert partial >= 0.5, f"the gate keeps 20-80 % in only {partial:.0%} of the cases"


def test_the_cases_cover_both_priorities_and_ragged_lengths():
    drawn = decided_cases(9, OPTION_SETS["acckv"], 40)
    assert {trace.priority for _, trace in drawn} == {VIDEO, AUDIO}
    assert len({case.length for case, _ in drawn}) > 20


def test_the_floor_returns_slots_after_the_gate():
    case = random_case(np.random.default_rng(1), layout="blocks", length=80)
    shared = {"budget": 40, "floor": 0.2, "tau": 1.1}
    bare = acckv_oracle(case.q, case.k, case.v, case.modality, **shared)
    floored = acckv_oracle(case.q, case.k, case.v, case.modality, **shared, floor_after_gate=True)
    low = VIDEO + AUDIO - (bare.priority or 0)
    expected = round(0.2 * (40 - int(np.sum(case.modality == TEXT))))
    for head, other in zip(bare.heads, floored.heads, strict=True):
        assert not np.any(head.modality == low)
        assert np.sum(other.modality == low) == expected


def test_cross_modal_merging_mixes_modalities():
    case = random_case(np.random.default_rng(2), layout="interleaved", length=70)
    case = Case(
        case.q, case.k, np.where(case.modality[None, :, None] == AUDIO, 1.0, 0.0) + 0 * case.v, case.k, case.modality
    )
    inside = acckv_oracle(case.q, case.k, case.v, case.modality, budget=0.3, gate="none")
    across = acckv_oracle(case.q, case.k, case.v, case.modality, budget=0.3, gate="none", cross_modal_merge=True)
    assert set(np.unique(inside.heads[0].values)) == {0.0, 1.0}
    assert len(np.unique(across.heads[0].values)) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 3}, "smallest possible here is 5"),
        ({"budget": 5, "merge": "summary"}, "smallest possible here is 6"),
        ({"budget": 0.0}, "in \\(0, 1\\]"),
        ({"budget": 1.5}, "in \\(0, 1\\]"),
        ({"budget": 0}, "at least 1"),
        ({"budget": 6, "split": "even"}, "Unknown split"),
        ({"budget": 6, "gate": "soft"}, "Unknown gate"),
        ({"budget": 6, "merge": "none", "cross_modal_merge": True}, "needs merge='pivot'"),
    ],
)
def test_bad_options_are_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        uniform([TEXT, VIDEO, VIDEO, TEXT, AUDIO, AUDIO, TEXT, TEXT], **options)


def test_padding_keeps_the_rows():
    drawn = [case for case, _ in decided_cases(13, OPTION_SETS["acckv"], 3)]
    batch = pad(drawn, fill=np.nan)
    assert batch["k"].shape == (3, 96, 2, 16) and batch["q"].shape == (3, 96, 4, 16)
    for row, case in enumerate(drawn):
        np.testing.assert_allclose(batch["k"][row, : case.length].swapaxes(0, 1), case.k, rtol=1e-6)
        assert np.isnan(batch["v"][row, case.length :]).all()

"""PyramidKV against kvpress, and where kvpress would be SnapKV instead."""

import functools
import pathlib

import jax
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.recorded import Recording, replay_layers
from tests.tiers import quick_first

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "kvpress_pyramid_kv.npz"


@functools.partial(jax.jit, static_argnames="policy")
def prefill(recordings: list[Recording], prompt: kv.Prompt, policy: kv.CachePolicy) -> kv.KVCache:
    decoder = kv.Decoder(replay_layers, num_layers=len(recordings))
    return kv.prefill(decoder, recordings, prompt.modality, prompt, policy)[1]


@pytest.mark.parametrize("number", quick_first(range(2)))
def test_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN) as golden:
        q, k = (golden[f"{name}_{number}"].swapaxes(1, 2)[:, None] for name in "qk")
        expected = [golden[f"kept_{number}_{layer}"] for layer in range(len(q))]
        share, window, kernel, beta = golden[f"options_{number}"].tolist()
    policy = kv.make_policy(
        "pyramid_kv", budget=share, window_size=int(window), kernel_size=int(kernel), beta=int(beta)
    )
    prompt = kv.make_prompt(np.ones(k.shape[1:3], int))
    policy.check(kv.count_tokens(prompt))
    cache = prefill([Recording(*layer) for layer in zip(q, k, k, strict=True)], prompt, policy)
    for layer, slots in zip(cache.layers, expected, strict=True):
        found = [np.asarray(layer.index)[0, head][np.asarray(layer.valid)[0, head]] for head in range(len(slots))]
        np.testing.assert_array_equal(found, slots)


def test_layers_have_the_budgets_of_kvpress():
    with np.load(GOLDEN) as golden:
        rows = golden["budgets"]
    assert len(rows) > 300
    for length, share, window, beta, layers, layer, expected in rows.tolist():
        policy = kv.PyramidKV(budget=share, window_size=int(window), beta=int(beta), levels=30)
        policy = policy.for_layers(int(layers))
        assert policy.capacity(int(length), int(layer)) == expected


@pytest.mark.parametrize("budget", [0.1, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("length", [40, 77, 333])
def test_the_mean_of_the_layers_is_the_budget(budget, length):
    """Also where an end of the line is at its bound; kvpress then keeps as much in all layers."""
    policy = kv.PyramidKV(budget=budget, window_size=4, levels=7).for_layers(7)
    slots = [policy.capacity(length, layer) for layer in range(7)]
    assert sum(slots) == pytest.approx(7 * budget * length, abs=3.5)
    assert slots == sorted(slots, reverse=True)
    assert 4 <= slots[-1] and slots[0] <= (length if budget > 0.95 else length - 4)


def test_slots_as_a_budget_are_the_same_for_all_prompts():
    policy = kv.PyramidKV(budget=40, window_size=4, levels=7).for_layers(7)
    line = [76, 64, 52, 40, 28, 16, 4]
    for length in (1000, 70, 20):
        assert [policy.capacity(length, layer) for layer in range(7)] == [min(length, slots) for slots in line]


def test_few_stacks_allocate_what_their_largest_layer_needs():
    policy = kv.PyramidKV(budget=0.3, window_size=8).for_layers(30)
    exact = kv.PyramidKV(budget=0.3, window_size=8, levels=30).for_layers(30)
    slots, allocated = ([one.capacity(1000, layer) for layer in range(30)] for one in (exact, policy))
    assert len(set(slots)) == 30 and len(set(allocated)) == 4
    for size in set(allocated):
        assert size == max(own for own, level in zip(slots, allocated, strict=True) if level == size)
    rows = [int(policy.row_budget(np.array([1000], np.int32), 1000, layer)[0]) for layer in range(0, 30, 7)]
    assert rows == slots[::7]


@pytest.mark.parametrize("scans", [False, pytest.param(True, marks=pytest.mark.complete)])
def test_a_scanning_decoder_keeps_what_a_loop_keeps(scans):
    decoder, params, inputs, prompt = tiny_decoder(scans=scans)
    policy = kv.Protected(kv.PyramidKV(budget=0.5, window_size=4, beta=4), first=2, last=0)
    found = kv.generate(decoder, params, inputs, prompt, policy, max_new_tokens=2)
    assert [round(sum(layer.values())) for layer in found.kept] == [56, 8]
    assert found.cache_bytes.prompt == (56 + 8) * 2 * 2 * 16 * 4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: kv.PyramidKV(budget=0.5, beta=0), "beta must be at least 1"),
        (lambda: kv.PyramidKV(budget=0.5, levels=0), "levels must be at least 1"),
        (lambda: kv.PyramidKV(budget=0.5).capacity(100, 0), "depend on the number of layers: call policy.for_layers"),
        (lambda: kv.PyramidKV(num_layers=3).for_layers(2), "made for 3 layers, and the decoder has 2"),
        (
            lambda: kv.PyramidKV(budget=20).check(kv.count_tokens(kv.make_prompt(np.ones((1, 64), int)))),
            "but PyramidKV's window .* needs 32",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

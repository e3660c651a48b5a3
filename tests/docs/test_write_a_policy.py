"""docs/write_a_policy.md: its code runs, and its policies do what the page says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import acckv_jax as kv
from tests.acckv_jax.contract_cases import place_scored
from tests.docs.pages import run


@pytest.fixture(scope="module")
def page():
    return run("docs/write_a_policy.md", {})


@pytest.fixture(scope="module")
def layers(page):
    """The layers of the prompt, pruned by a policy."""
    prompt = (page[name] for name in ("decoder", "params", "inputs", "prompt"))
    _, scored = kv.jitted.score(*prompt, (page["TOVA"](), page["LargeOutputs"]()))
    return lambda policy: kv.prune(scored, policy).layers


def test_half_the_cache_is_freed(page):
    assert page["result"].tokens.shape == (1, 8)
    assert page["result"].cache_bytes.prompt == 2 * 2 * 2 * 32 * 16 * 4  # layers, k and v, heads, slots, size, bytes


@pytest.mark.parametrize("half_life", [0.5, 0.002])  # the factors of the second are zero in float32
def test_attention_fades_with_age(page, half_life):
    prompt = (page[name] for name in ("decoder", "params", "inputs", "prompt"))
    policy = page["Fading"](budget=24, half_life=half_life)
    _, scored = kv.jitted.score(*prompt, (policy,))
    sums, kept = np.asarray(scored.sums[1][0], float)[0], kv.prune(scored, policy).layers[1].index[0]
    for head in range(2):
        scores = np.log2(sums[head]) - (1 - np.arange(64) / 64) / half_life
        np.testing.assert_array_equal(kept[head], np.sort(np.argsort(-scores)[:24]))


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan"), float("inf"), "long"])
def test_wrong_options(page, half_life):
    with pytest.raises(ValueError, match="half_life"):
        page["Fading"](half_life=half_life)


def test_text_first(page, layers):
    for layer in layers(page["TextFirst"](budget=20)):
        assert set(range(4)) | set(range(60, 64)) <= set(np.asarray(layer.index)[0, 0].tolist())
    with pytest.raises(ValueError, match="text, which is kept whole, needs 8"):
        page["TextFirst"](budget=7).check(kv.count_tokens(page["prompt"]))
    with pytest.raises(ValueError, match="smallest possible budget is 1"):
        page["TextFirst"](budget=0.04).check(kv.count_tokens(kv.make_prompt(np.ones((1, 12), int))))


def test_merged_slots_hold_every_token(page, layers):
    for merged, plain in zip(layers(page["Merged"](budget=20)), layers(page["KeyDiff"](budget=20)), strict=True):
        np.testing.assert_array_equal(merged.index, plain.index)
        kinds = set(np.asarray(merged.modality)[0, 0].tolist())
        whole = np.isin(np.asarray(page["prompt"].modality)[0], list(kinds)).sum()
        assert np.asarray(merged.multiplicity)[0, 0].sum() == whole
        assert not np.allclose(merged.keys, plain.keys)


def test_following_layers_keep_the_source_layers_choice(page, layers):
    first, second = layers(page["Following"](budget=20))
    np.testing.assert_array_equal(first.index, second.index)
    own = layers(page["TOVA"](budget=20))
    np.testing.assert_array_equal(first.index, own[0].index)
    assert (own[0].index != own[1].index).any()
    before, source = layers(page["Following"](budget=20, source=1))
    np.testing.assert_array_equal(before.index, own[0].index)
    np.testing.assert_array_equal(source.index, own[1].index)


def test_inputs_reach_the_policy(page, layers):
    kept = layers(page["LargeOutputs"](budget=20))[1].index
    values = np.asarray(page["scored"].cache.layers[1].values, float)[0]
    weights = np.asarray(page["params"]["o"][1], float).reshape(2, 2, 16, -1)  # KV heads, their query heads, H, D
    for head in range(2):
        outputs = sum(np.abs(values[head] @ one).sum(-1) for one in weights[head])
        np.testing.assert_array_equal(kept[0, head], np.sort(np.argsort(-outputs)[:20]))


def test_heads_share_their_tokens(page, layers):
    kept = page["kept"]
    np.testing.assert_array_equal(kept[:, 0, :32], kept[:, 1, :32])
    assert {0, 1, 60, 61, 62, 63} <= set(np.asarray(kept)[0, 0, :32].tolist())
    own = layers(page["KeyDiff"](budget=0.5))[0].index
    assert bool(jnp.any(own[:, 0] != own[:, 1]))


def test_sharding_needs_no_code(page):
    inner = page["KeyDiff"](budget=20)
    policies = inner, page["TOVA"](budget=20), page["Following"](budget=20), page["SharedByHeads"](inner)
    prompt = (page[name] for name in ("decoder", "params", "inputs", "prompt"))
    _, scored = kv.jitted.score(*prompt, (page["TOVA"](),))
    mesh = jax.make_mesh((1, 2), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        scored = place_scored(scored)
        for policy in policies:
            for layer in jax.eval_shape(lambda scored, policy=policy: kv.prune(scored, policy), scored).layers:
                assert tuple(layer.k.sharding.spec)[:2] == ("data", "tensor")

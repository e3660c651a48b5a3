"""The contract of every policy, on what an episode returns: the rules of the cache that are about values.

The rules are in docs/cache.md, with the numbers of the test names; those about programs and meshes have the files
beside this one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.storage import SlotStorage
from acckv_jax.wrappers.base import inside
from acckv_jax.wrappers.quantized import QuantizedSlots
from tests.acckv_jax.contract_cases import (
    CONTRACT,
    DECODER,
    GARBAGE,
    LENGTHS,
    MODEL,
    ONE_OF_EACH,
    QUESTION,
    QUESTIONS,
    STEPS,
    Inputs,
    allowed,
    episode,
    params_of,
    random_inputs,
    run_episode,
    scored_by,
)
from tests.acckv_jax.dense import dense_logits, episode_masks, merged_slots
from tests.tiers import REPRESENTATIVES, quick_only
from tests.tolerances import BF16, FP32, LOGITS, QUANTIZED, STEP

every_policy = pytest.mark.parametrize("name", quick_only(CONTRACT, (*REPRESENTATIVES, *ONE_OF_EACH)))
pruned_by = jax.jit(kv.prune, static_argnames=("policy", "reserved_slots"))


def is_quantized(layer: kv.LayerCache) -> bool:
    return isinstance(layer.k, SlotStorage)


def rounding(layer: kv.LayerCache) -> float:
    """How far stored keys and values may be off."""
    return STEP[layer.k.bits] if isinstance(layer.k, QuantizedSlots) else 0.0


def heads_of(layer):
    """Row, head, and the valid slots of every row and head."""
    for row, head in np.ndindex(*layer.valid.shape[:2]):
        yield row, head, np.flatnonzero(layer.valid[row, head])


def assert_same_cache(actual: kv.KVCache, expected: kv.KVCache, **tolerance):
    """The same valid slots, in the same order, with the same contents; what invalid slots hold does not matter."""
    np.testing.assert_array_equal(actual.length, expected.length)
    np.testing.assert_array_equal(actual.delta, expected.delta)
    for ours, theirs in zip(actual.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(ours.budget, theirs.budget)
        np.testing.assert_array_equal(ours.finite, theirs.finite)
        for row, head, slots in heads_of(theirs):
            mine = np.flatnonzero(ours.valid[row, head])
            for exact in ("index", "modality", "multiplicity"):
                a, b = (getattr(layer, exact)[row, head] for layer in (ours, theirs))
                np.testing.assert_array_equal(a[mine], b[slots], err_msg=exact)
            for close in ("keys", "values", "mass"):
                a, b = (np.asarray(getattr(layer, close))[row, head] for layer in (ours, theirs))
                off = {"rtol": 0.02, "atol": rounding(theirs)} if is_quantized(theirs) else tolerance
                np.testing.assert_allclose(a[mine], b[slots], err_msg=close, **off)


def test_the_table_has_every_policy_and_wrapper():
    assert kv.POLICIES.keys() - CONTRACT.keys() == set()
    assert set(kv.WRAPPERS.values()) - set(map(type, CONTRACT.values())) == set()


@every_policy
def test_rule_1_positions_go_on_from_the_uncompressed_length(name):
    run, full = episode(name), episode("full")
    np.testing.assert_array_equal(run.pruned.next_position, LENGTHS)
    np.testing.assert_array_equal(run.decoded.next_position, LENGTHS + STEPS)
    np.testing.assert_array_equal(run.extended.next_position, LENGTHS + STEPS + QUESTIONS)
    for layer, whole in zip(run.pruned.layers, full.pruned.layers, strict=True):
        for row, head, slots in heads_of(layer):
            own = slots[layer.multiplicity[row, head, slots] == 1]
            at = layer.index[row, head, own]
            assert len(own)
            for field in ("keys", "values"):  # kept keys keep the rotation of their own position
                ours, theirs = (np.asarray(getattr(one, field))[row, head] for one in (layer, whole))
                np.testing.assert_allclose(ours[own], theirs[at], rtol=0, atol=rounding(layer))


@every_policy
def test_rules_1_and_4_equal_dense_attention_with_the_same_slots_masked(name):
    run, inputs = episode(name), random_inputs()
    tokens, rows, masks = episode_masks(inputs, run)
    late = merged_slots(inputs, run, tokens.shape[1], CONTRACT[name].log_multiplicity)
    dense = dense_logits(MODEL, params_of(), tokens, rows, tuple(masks), late)
    np.testing.assert_allclose(run.logits, dense[0], **LOGITS)
    again = is_quantized(run.pruned.layers[0]) and CONTRACT[name].evict_every  # each eviction quantises anew
    tolerance = QUANTIZED if again else LOGITS
    np.testing.assert_allclose(run.step_logits, dense[1:-1], **tolerance)
    np.testing.assert_allclose(run.question_logits, dense[-1], **tolerance)


@every_policy
def test_rule_2_time_order(name):
    run = episode(name)
    for cache in (run.pruned, run.decoded, run.extended):
        for layer in cache.layers:
            for row, head, slots in heads_of(layer):
                assert (np.diff(layer.index[row, head, slots]) > 0).all()


@every_policy
def test_rule_3_padding_is_never_kept(name):
    run = episode(name)
    for cache, length in (
        (run.pruned, LENGTHS),
        (run.decoded, LENGTHS + STEPS),
        (run.extended, LENGTHS + STEPS + QUESTIONS),
    ):
        for layer in cache.layers:
            for row, head, slots in heads_of(layer):
                assert len(slots) and layer.index[row, head, slots].max() < length[row]


@every_policy
def test_rule_3_rows_do_not_depend_on_the_batch_or_on_what_padding_holds(name):
    turned = jax.tree.map(np.asarray, random_inputs())
    turned = Inputs(*(jax.tree.map(lambda x, a=i == 2: np.flip(x, int(a)).copy(), x) for i, x in enumerate(turned)))
    rng = np.random.default_rng(1)
    for tokens, prompt in ((turned.tokens, turned.prompt), (turned.question, turned.question_prompt)):
        padding = np.arange(tokens.shape[1])[None] >= prompt.length[:, None]
        tokens[padding] = GARBAGE
        prompt.modality[padding] = rng.integers(0, 4, padding.sum())
    run = jax.device_get(run_episode(MODEL, CONTRACT[name], params_of(), turned))
    expected = episode(name)
    tolerance = QUANTIZED if is_quantized(expected.pruned.layers[0]) else FP32
    for field in ("logits", "step_logits", "question_logits"):
        axis = getattr(run, field).ndim - 2
        np.testing.assert_allclose(np.flip(getattr(run, field), axis), getattr(expected, field), **tolerance)
    for field in ("pruned", "decoded", "extended"):
        back = jax.tree.map(lambda x: np.flip(x, 0) if x.ndim else x, getattr(run, field))
        assert_same_cache(back, getattr(expected, field), **FP32)


@pytest.mark.parametrize("name", quick_only(CONTRACT, ["acckv"]))
def test_rule_3_a_row_alone_in_a_smaller_bucket(name):
    inputs, row = random_inputs(), 3
    alone = Inputs(
        inputs.tokens[row:, :57],
        kv.make_prompt(np.asarray(inputs.prompt.modality)[row:, :57]),
        inputs.forced[:, row:],
        inputs.question[row:],
        kv.make_prompt(np.zeros((1, QUESTION), int), QUESTIONS[row:]),
    )
    run = jax.device_get(run_episode(MODEL, CONTRACT[name], params_of(), alone))
    expected = episode(name)
    np.testing.assert_allclose(run.logits[0], expected.logits[row], **LOGITS)
    np.testing.assert_allclose(run.step_logits[:, 0], expected.step_logits[:, row], **LOGITS)
    np.testing.assert_allclose(run.question_logits[0], expected.question_logits[row], **LOGITS)
    of_row = jax.tree.map(lambda x: x[row:] if x.ndim else x, expected.extended)
    assert_same_cache(run.extended, of_row, **FP32)


@pytest.mark.parametrize("name", quick_only(name for name in CONTRACT if not name.startswith("per_layer")))
def test_rule_4_keeping_everything_is_no_policy(name):
    policy = CONTRACT[name].with_budget(1.0)
    scored, full = scored_by(name), episode("full")
    pruned = pruned_by(scored, policy, reserved_slots=STEPS)
    for ours, theirs in zip(pruned.layers, full.pruned.layers, strict=True):
        for exact in ("valid", "budget", "next_slot", "finite"):
            np.testing.assert_array_equal(getattr(ours, exact), getattr(theirs, exact), err_msg=exact)
        for field in ("keys", "values", "index", "modality", "multiplicity"):
            a, b = np.asarray(getattr(ours, field)), np.asarray(getattr(theirs, field))
            atol = max(rounding(ours), 1e-6)
            np.testing.assert_allclose(a[theirs.valid], b[theirs.valid], rtol=0, atol=atol, err_msg=field)


@pytest.mark.parametrize("name", quick_only(["acckv_plus", "h2o", "random"], ["acckv_plus"]))
def test_rule_4_keeping_everything_through_generation(name):
    policy = dataclasses.replace(CONTRACT[name], budget=1.0, evict_every=0)
    run = jax.device_get(run_episode(MODEL, policy, params_of(), random_inputs()))
    for field in ("logits", "step_logits", "question_logits"):
        np.testing.assert_allclose(getattr(run, field), getattr(episode("full"), field), **LOGITS)


@pytest.mark.parametrize("name", quick_only(CONTRACT))
def test_rule_4_prefill_equals_score_and_prune(name):
    pruned = pruned_by(scored_by(name), CONTRACT[name])
    assert_same_cache(jax.device_get(pruned), episode(name).pruned, **FP32)


@pytest.mark.parametrize("name", quick_only(CONTRACT, ("look_m",)))
def test_a_bfloat16_cache_is_pruned_as_its_values_in_float32(name):
    scored, policy = scored_by(name), CONTRACT[name]

    def pruned_in(dtype: jnp.dtype) -> kv.KVCache:
        layers = tuple(
            dataclasses.replace(
                layer, k=layer.k.astype(jnp.bfloat16).astype(dtype), v=layer.v.astype(jnp.bfloat16).astype(dtype)
            )
            for layer in scored.cache.layers
        )
        cache = dataclasses.replace(scored.cache, stacks=layers)
        return jax.device_get(pruned_by(dataclasses.replace(scored, cache=cache), policy))

    for ours, theirs in zip(pruned_in(jnp.bfloat16).layers, pruned_in(jnp.float32).layers, strict=True):
        assert ours.keys.dtype == ours.values.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours.valid, theirs.valid)
        np.testing.assert_array_equal(ours.index[ours.valid], theirs.index[theirs.valid])
        for field in ("keys", "values"):
            a, b = (np.asarray(getattr(layer, field), np.float32)[layer.valid] for layer in (ours, theirs))
            np.testing.assert_allclose(a, b, **BF16)


def most_of_a_head(policy: kv.CachePolicy, slots: np.ndarray, bucket: np.ndarray) -> np.ndarray:
    """Slots that one head of one layer may hold where `slots` are the mean over heads (AdaKV) or layers (MadaKV)."""
    for one in (policy, *(inside(policy) if isinstance(policy, kv.Wrapper) else ())):
        if isinstance(one, kv.AdaKV):
            return np.minimum(bucket, np.round(one.most * slots).astype(int))
        if isinstance(one, kv.MadaKV):
            return np.minimum(bucket, np.floor(one.most * slots).astype(int))
    return slots


@every_policy
def test_rule_5_bytes_and_valid_slots(name):
    run, policy = episode(name), CONTRACT[name]
    bucket = np.array([96])
    capacities = [
        int(most_of_a_head(policy, allowed(policy, bucket, layer), bucket)[0]) for layer in range(MODEL.layers)
    ]
    reserved = min(policy.evict_every, STEPS) if policy.evict_every else STEPS
    heads = len(LENGTHS) * MODEL.kv_heads
    size = kv.cache_bytes(jax.tree.map(jnp.asarray, run.pruned))
    if is_quantized(run.pruned.layers[0]):  # of 8 bits a byte; scale and zero of each key channel and of each value
        numbers = 2 * MODEL.head_dim * run.pruned.layers[0].k.bits // 8
        prompt = sum(heads * (numbers * c + 8 * MODEL.head_dim + 8 * c) for c in capacities)
    else:
        prompt = sum(heads * 2 * c * MODEL.head_dim * 4 for c in capacities)
    assert size.prompt == prompt
    assert size.reserved == MODEL.layers * heads * 2 * reserved * MODEL.head_dim * 4
    total = sum(x.nbytes for x in jax.tree.leaves(run.pruned.layers))
    assert 0 < size.metadata == total - size.prompt - size.reserved
    for number, (layer, capacity) in enumerate(zip(run.pruned.layers, capacities, strict=True)):
        most = allowed(policy, LENGTHS, number)
        assert layer.slots == layer.keys.shape[2] == layer.values.shape[2] == capacity + reserved
        np.testing.assert_array_equal(layer.budget, most)
        inner = policy
        while isinstance(inner, kv.Wrapper):
            inner = inner.inner
        assert (layer.valid.sum(-1) <= most_of_a_head(policy, most, LENGTHS)[:, None]).all()
        if not isinstance(inner, kv.MadaKV):
            assert (layer.valid.sum((1, 2)) <= most * MODEL.kv_heads).all()
            if getattr(inner, "gate", "none") == "none" or getattr(inner, "refill", False):
                np.testing.assert_array_equal(layer.valid.sum((1, 2)), most * MODEL.kv_heads)
    for number, (layer, capacity) in enumerate(zip(run.decoded.layers, capacities, strict=True)):
        assert layer.slots == layer.keys.shape[2] == capacity + reserved
        grown = reserved if policy.evict_every else STEPS  # between two prunes a row may use its reserved slots
        most = most_of_a_head(policy, allowed(policy, LENGTHS, number), LENGTHS)
        assert (layer.valid.sum(-1) <= most[:, None] + grown).all()
    mean = np.mean([layer.valid.sum(-1).mean(1) for layer in run.pruned.layers], axis=0)  # over heads and layers
    assert (mean <= np.mean([allowed(policy, LENGTHS, layer) for layer in range(MODEL.layers)], axis=0)).all()
    counts = kv.kept_counts(run.pruned)
    for layer, count in zip(run.pruned.layers, counts, strict=True):
        assert sum(count.values()) == pytest.approx(layer.valid.sum() / layer.valid[..., 0].size)


def test_rule_5_compact_frees_what_the_gate_dropped():
    run = episode("acckv")
    cache = jax.tree.map(jnp.asarray, run.pruned)
    small = kv.compact(cache)
    used = [int(layer.valid.sum(-1).max()) for layer in run.pruned.layers]
    assert any(n < layer.slots - layer.reserved_slots for n, layer in zip(used, cache.layers, strict=True))
    assert [layer.slots - layer.reserved_slots for layer in small.layers] == used
    assert kv.cache_bytes(small).prompt == sum(used) * 2 * len(LENGTHS) * MODEL.kv_heads * MODEL.head_dim * 4
    assert kv.cache_bytes(small).prompt < kv.cache_bytes(cache).prompt
    budgets = [np.minimum(layer.budget, n) for layer, n in zip(cache.layers, used, strict=True)]
    expected = [dataclasses.replace(a, budget=b) for a, b in zip(run.pruned.layers, budgets, strict=True)]
    assert_same_cache(jax.device_get(small), dataclasses.replace(run.pruned, stacks=tuple(expected)), rtol=0)
    tokens = random_inputs().forced[0]
    step = jax.jit(kv.decode_step, static_argnums=(0, 4))
    active = jnp.ones(len(LENGTHS), bool)
    logits, _ = step(DECODER, params_of(), tokens, small, CONTRACT["acckv"], active)
    np.testing.assert_allclose(logits, run.step_logits[0], **FP32)


def test_rule_5_eviction_after_compact_drops_no_recent_token():
    policy = dataclasses.replace(CONTRACT["acckv"], recent=3, evict_every=2)
    pruned = pruned_by(scored_by("acckv"), policy, reserved_slots=2)
    cache = kv.compact(pruned)
    step = jax.jit(kv.decode_step, static_argnums=(0, 4))
    for tokens in random_inputs().forced:
        _, cache = step(DECODER, params_of(), tokens, cache, policy, jnp.ones(len(LENGTHS), bool))
    for layer in jax.device_get(cache).layers:
        for row, head, slots in heads_of(layer):
            assert {LENGTHS[row] + STEPS - 1, LENGTHS[row] + STEPS - 2} <= set(layer.index[row, head, slots].tolist())


NAN_ROW = 1


@every_policy
def test_rule_7_nan_lowers_a_flag_that_the_host_turns_into_an_error(name):
    inputs = random_inputs()
    inputs.tokens[NAN_ROW, 11] = GARBAGE
    run = jax.device_get(run_episode(MODEL, CONTRACT[name], params_of(), inputs))
    for layer in run.pruned.layers:
        np.testing.assert_array_equal(layer.finite, np.arange(len(LENGTHS)) != NAN_ROW)
    with pytest.raises(ValueError, match=rf"batch rows \[{NAN_ROW}\] are not finite"):
        kv.check_finite(run.extended)
    assert kv.check_finite(episode(name).extended) is episode(name).extended
    others = np.arange(len(LENGTHS)) != NAN_ROW
    np.testing.assert_allclose(run.logits[others], episode(name).logits[others], **FP32)
    np.testing.assert_allclose(run.step_logits[:, others], episode(name).step_logits[:, others], **FP32)


def test_rule_7_nan_while_decoding_lowers_the_flag_too():
    inputs = random_inputs()
    inputs.forced[3, NAN_ROW] = GARBAGE
    run = jax.device_get(run_episode(MODEL, CONTRACT["full"], params_of(), inputs))
    kv.check_finite(run.pruned)
    with pytest.raises(ValueError, match=rf"batch rows \[{NAN_ROW}\] are not finite"):
        kv.check_finite(run.decoded)

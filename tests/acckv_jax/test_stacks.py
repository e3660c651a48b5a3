"""Decoders that run their layers in scans give what loops give, under every kind of policy, in fewer operations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer
from tests.acckv_jax.test_contract import assert_same_cache
from tests.tiers import quick_first
from tests.tolerances import FP32, QUANTIZED

LAYERS, TOKENS, NEW = 4, 64, 6
LOOPING = TinyTransformer(num_layers=LAYERS)
PARAMS = LOOPING.init(jax.random.key(1))
INPUTS = np.random.default_rng(1).permutation(np.arange(TOKENS) % 32)[None].repeat(2, 0).astype(np.int32)
MODALITY = np.repeat([0, 1, 2, 0], [4, 28, 28, 4])[None].repeat(2, 0)
PROMPT = kv.make_prompt(MODALITY, np.array([64, 49]))
QUESTION, ASKED = INPUTS[:, :8], kv.make_prompt(np.zeros((2, 8), int), np.array([8, 5]))


@dataclasses.dataclass(frozen=True)
class OwnScan:
    """The same layers, in a scan of the decoder's own over stacked weights; of the library it knows `Stack` alone."""

    def __call__(self, params, inputs, positions, caches, carry, attend, logit_positions):
        def layer(state, given):
            (x, carry), (number, w, cache) = state, given
            q, k, v = (jnp.einsum("btd,dnh->btnh", x, w[name]) for name in "qkv")
            more = {"hidden_states": x, "unrotated_q": q, "output_weights": w["o"]}
            out, cache, carry = attend(number, q, k, v, cache, carry, **more)
            return (x + jnp.einsum("btnh,nhd->btd", out, w["o"]), carry), cache

        state, after = (params["embed"][inputs], carry), []
        for stack in caches:
            at = slice(stack.first, stack.first + stack.count)
            own, numbers = {name: params[name][at] for name in "qkvo"}, jnp.arange(at.start, at.stop)
            if stack.count > 1:
                state, cache = jax.lax.scan(layer, state, (numbers, own, stack.entries))
            else:
                state, cache = layer(state, (stack.first, jax.tree.map(lambda x: x[0], own), stack.entries))
            after.append(cache)
        last = jax.vmap(lambda states, row: states[row])(state[0], logit_positions)
        return last @ params["embed"].T, tuple(after), state[1]


def decoder_of(step, **options) -> kv.Decoder:
    return kv.Decoder(step, LAYERS, **options)


LOOP = decoder_of(LOOPING)
SCANS = {
    "run_layers": decoder_of(dataclasses.replace(LOOPING, scans=True), scans=True),
    "own_scan": decoder_of(OwnScan(), scans=True),
}


@dataclasses.dataclass(frozen=True)
class Following(kv.CachePolicy):
    """Keeps in all layers what the first one keeps, by a carry; and reads inputs beside keys and values."""

    needs = ("hidden_states", "output_weights")

    def init_carry(self, modality):
        return jnp.zeros(modality.shape, jnp.float32)

    def compress(self, layer, context):
        states, weights = context.inputs["hidden_states"], context.inputs["output_weights"]
        own = jnp.abs(states).sum(-1) * jnp.abs(weights).sum()
        carry = jnp.where(context.layer == 0, own, context.carry)
        scores = jnp.broadcast_to(carry[:, None], layer.mass.shape)
        return super().compress(layer, dataclasses.replace(context, scores=scores, carry=carry))


POLICIES = {
    "h2o_every_4": kv.H2O(budget=0.5, evict_every=4),
    "per_layer": kv.PerLayer(kv.SnapKV(budget=0.4, window_size=8), shares=(1.5, 1.0, 1.0, 0.5)),
    "full": kv.Full(),
    "random": kv.Random(budget=0.5),
    "acckv": kv.AccKV(budget=0.5),
    "acckv_plus_every_4": kv.AccKV.plus(budget=0.5, evict_every=4),
    "quantized": kv.Quantized(kv.Protected(kv.H2O(budget=0.5, evict_every=4))),
    "quantized_4": kv.Quantized(kv.Smoothed(kv.SnapKV(budget=0.5, window_size=8)), bits=4),
    "following": Following(budget=0.5),
    "clie": kv.CLIE(kv.AccKV.plus(budget=0.5), scored_layers=1),
    "critical_kv": kv.CriticalKV(kv.AdaKV(kv.H2O(budget=0.5, evict_every=4), most=1.5)),
}
COUNTS = {"per_layer": [1, 2, 1], "clie": [1, LAYERS - 1]}
by_policy = pytest.mark.parametrize("name", quick_first(POLICIES))


@jax.jit(static_argnames=("decoder", "policy", "split"))
def conversation(params, *, decoder, policy, split=False):
    """A prompt read in one pass, and in two chunks that are pruned afterwards; an answer, a question, an answer."""
    room = policy.reserved_slots(NEW)
    logits, cache = kv.prefill(decoder, params, INPUTS, PROMPT, policy, reserved_slots=room)
    pieces = [kv.make_prompt(MODALITY[:, :40]), kv.make_prompt(MODALITY[:, 40:], np.array([24, 9]))]
    _, scored = kv.score(decoder, params, INPUTS[:, :40], pieces[0], (policy,), complete=False)
    _, scored = kv.score(decoder, params, INPUTS[:, 40:], pieces[1], (policy,), before=scored)
    pruned = kv.prune(scored, policy, reserved_slots=room)
    state = kv.start_decoding(logits, kv.unstack(cache) if split else cache, jax.random.key(0))
    first, _, state = kv.decode(decoder, params, state, policy, steps=NEW)
    logits, extended = kv.extend(
        decoder, params, QUESTION, ASKED, state.cache, policy, reserved_slots=policy.reserved_slots(NEW)
    )
    state = kv.start_decoding(logits, extended, jax.random.key(0))
    second, _, state = kv.decode(decoder, params, state, policy, steps=NEW)
    step = kv.decode_step(decoder, params, first[:, 0], cache, policy, PROMPT.length > 0)
    return (cache, pruned, state.cache, step[1]), (first, second), (logits, step[0])


def assert_same(found, expected, policy):
    caches, tokens, logits = found
    tolerance = QUANTIZED if isinstance(policy, kv.Quantized) else FP32
    for one, other in zip(caches, expected[0], strict=True):
        assert_same_cache(one, other, **FP32)
    for one, other in zip(tokens, expected[1], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(logits, expected[2], strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


@by_policy
@pytest.mark.parametrize("kind", quick_first(SCANS))
def test_scans_equal_a_loop(kind, name):
    policy = POLICIES[name]
    expected = jax.device_get(conversation(PARAMS, decoder=LOOP, policy=policy))
    found = jax.device_get(conversation(PARAMS, decoder=SCANS[kind], policy=policy))
    for cache in found[0][:2]:
        assert [stack.num_layers for stack in cache.stacks] == COUNTS.get(name, [LAYERS])
        assert all(stack.is_stack == (stack.num_layers > 1) for stack in cache.stacks)
    assert_same(found, expected, policy)
    for one, other in zip(found[0], expected[0], strict=True):
        assert kv.cache_bytes(one) == kv.cache_bytes(other)
    one, other = found[0][0], expected[0][0]
    assert kv.kept_counts(one) == kv.kept_counts(other)
    assert_same_cache(jax.device_get(kv.compact(one)), jax.device_get(kv.compact(other)), **FP32)


@pytest.mark.complete
@by_policy
def test_decoding_over_single_layers(name):
    """As on CPUs: the cache of a scan, unstacked; a further question joins the layers again."""
    policy, decoder = POLICIES[name], SCANS["run_layers"]
    expected = jax.device_get(conversation(PARAMS, decoder=decoder, policy=policy))
    found = jax.device_get(conversation(PARAMS, decoder=decoder, policy=policy, split=True))
    assert_same(found, expected, policy)


@pytest.mark.complete
def test_one_call_decodes_stacks_and_single_layers():
    def asked(decoder):
        first = kv.generate(decoder, PARAMS, INPUTS, PROMPT, POLICIES["per_layer"], max_new_tokens=3)
        more = kv.generate(decoder, PARAMS, QUESTION, ASKED, POLICIES["per_layer"], max_new_tokens=3, after=first)
        return np.concatenate([first.tokens, more.tokens], axis=1)

    np.testing.assert_array_equal(asked(SCANS["run_layers"]), asked(LOOP))


def test_stacks_are_joined_and_divided():
    policy = POLICIES["per_layer"]
    _, cache = kv.jitted.prefill(SCANS["run_layers"], PARAMS, INPUTS, PROMPT, policy)
    single = kv.unstack(cache)
    assert [one.is_stack for one in single.stacks] == [False] * LAYERS and cache.num_layers == LAYERS
    assert [one.num_layers for one in kv.stack(single).stacks] == COUNTS["per_layer"]
    assert_same_cache(jax.device_get(kv.stack(single)), jax.device_get(cache), rtol=0)


@pytest.mark.complete
def test_a_nan_in_one_layer_is_told():
    bad = PARAMS | {"v": PARAMS["v"].at[2, 0, 0, 0].set(jnp.nan)}
    _, cache = kv.jitted.prefill(SCANS["run_layers"], bad, INPUTS, PROMPT, kv.Full())
    with pytest.raises(ValueError, match=r"batch rows \[0, 1\] are not finite"):
        kv.check_finite(cache)


def test_rows_are_repeated_in_stacks():
    one = kv.make_prompt(MODALITY[:1])
    _, scored = kv.jitted.score(SCANS["run_layers"], PARAMS, INPUTS[:1], one, (Following(), kv.H2O()))
    three = kv.repeat_rows(scored, 3)
    assert [x.shape[1] for x in (three.cache.stacks[0].k, *three.sums[0], three.inputs[0]["hidden_states"])] == [3] * 3
    assert three.inputs[0]["output_weights"].shape[0] == LAYERS
    assert [x.shape[0] for x in three.attention_sums(kv.H2O().queries[0])] == [3] * LAYERS


def test_a_program_does_not_grow_with_the_layers():
    def operations(layers: int, *, scans: bool) -> int:
        model = TinyTransformer(num_layers=layers, scans=scans)
        params = jax.eval_shape(model.init, jax.random.key(0))
        decoder = kv.Decoder(model, layers, scans)
        run = jax.jit(kv.prefill, static_argnames=("decoder", "policy"))
        return run.lower(decoder, params, INPUTS, PROMPT, kv.AccKV.plus(budget=0.5)).as_text().count("\n")

    assert operations(8, scans=True) == operations(4, scans=True)
    assert operations(8, scans=False) > operations(4, scans=False)

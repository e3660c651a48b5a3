"""What policies may ask for beyond keys, values and attention: a carry over layers, inputs of the layer, W_O."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.tiny_dense import dense_run
from tests.tolerances import FP32


@dataclasses.dataclass(frozen=True)
class FirstLayersChoice(kv.CachePolicy):
    """All layers keep what the first one attends to most, as FastV does from a layer on."""

    @property
    def queries(self):
        return (kv.QuerySet(last=1),)

    def init_carry(self, modality):
        return jnp.zeros(modality.shape, jnp.float32)

    def compress(self, layer, context):
        own = context.attention_sums(self.queries[0]).mean(1)
        carry = jnp.where(context.layer == 0, own, context.carry)
        scores = jnp.zeros_like(layer.mass) + carry[:, None]
        return super().compress(layer, dataclasses.replace(context, scores=scores, carry=carry))


@dataclasses.dataclass(frozen=True)
class Novel(kv.CachePolicy):
    """Keeps tokens whose layer input differs from the one before, as OmniMem's novelty."""

    needs: ClassVar[tuple[str, ...]] = ("hidden_states",)

    def token_scores(self, layer, context):
        h = context.inputs["hidden_states"]
        change = jnp.linalg.norm(h - jnp.roll(h, 1, axis=1), axis=-1)
        return jnp.zeros_like(layer.mass) + change[:, None]


@dataclasses.dataclass(frozen=True)
class LargeOutputs(kv.CachePolicy):
    """Keeps tokens whose values weigh most in the output, L1 of W_O v over the group, as CriticalKV."""

    needs: ClassVar[tuple[str, ...]] = ("output_weights",)

    def token_scores(self, layer, context):
        w_o = context.inputs["output_weights"]  # [N, H, D]
        kv_heads = layer.values.shape[1]
        grouped = w_o.reshape(kv_heads, -1, *w_o.shape[1:])
        return jnp.abs(jnp.einsum("bksh,kghd->bksgd", layer.values, grouped)).sum((-1, -2))


POLICIES = [FirstLayersChoice(budget=0.5), Novel(budget=0.5), LargeOutputs(budget=0.5)]
DECODER, PARAMS, INPUTS, PROMPT = tiny_decoder()


def kept(cache: kv.KVCache) -> np.ndarray:
    return np.stack([np.sort(np.where(layer.valid, layer.index, -1), -1) for layer in cache.layers])


def expected(policy: kv.CachePolicy) -> np.ndarray:
    kept = []
    runs = dense_run(PARAMS, INPUTS)
    for layer, (x, _, _, v, _) in enumerate(runs):
        heads = v.shape[1]
        if isinstance(policy, FirstLayersChoice):
            score = np.repeat(runs[0].attention[:, :, -1].mean(1)[:, None], heads, 1)
        elif isinstance(policy, Novel):
            score = np.repeat(np.linalg.norm(x - np.roll(x, 1, 1), axis=-1)[:, None], heads, 1)
        else:
            w_o = np.asarray(PARAMS["o"][layer], float).reshape(heads, -1, v.shape[-1], x.shape[-1])
            score = np.abs(np.einsum("bksh,kghd->bksgd", v, w_o)).sum((-1, -2))
        kept.append(np.sort(np.argsort(-score, axis=-1)[..., : x.shape[1] // 2], -1))
    return np.stack(kept)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_keeps_what_a_dense_run_says(policy):
    _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy)
    np.testing.assert_array_equal(kept(cache), expected(policy))


def test_score_keeps_what_policies_need_and_chunks_equal_one_piece():
    ids, modality = np.asarray(INPUTS), np.asarray(PROMPT.modality)
    prompts = [kv.make_prompt(part) for part in (modality[:, :40], modality[:, 40:])]
    policies = tuple(POLICIES)
    _, head = kv.jitted.score(DECODER, PARAMS, ids[:, :40], prompts[0], policies, complete=False)
    _, whole = kv.jitted.score(DECODER, PARAMS, ids[:, 40:], prompts[1], policies, before=head)
    for policy in policies:
        _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy)
        pruned = kv.prune(whole, policy)
        np.testing.assert_array_equal(kept(pruned), kept(cache))
        for ours, theirs in zip(pruned.layers, cache.layers, strict=True):
            np.testing.assert_allclose(ours.k, theirs.k, **FP32)
    repeated = kv.repeat_rows(whole, 2)
    for policy in policies:
        np.testing.assert_array_equal(kept(kv.prune(repeated, policy))[:, 1:], kept(kv.prune(whole, policy)))


def base_compress(self, layer, context):
    return kv.CachePolicy.compress(self, layer, context)


@pytest.mark.parametrize("scans", [False, True])
@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (lambda _, layer, context: layer, "returns a LayerCache and the next layer's carry, not LayerCache"),
        (lambda _, layer, context: (layer, context.carry), "returned a layer of 64 slots, and not of 32"),
        (lambda *given: (base_compress(*given)[0], jnp.zeros(3)), r"carry of float32\[3\] after one of \(\)"),
    ],
)
def test_what_compress_may_not_return_is_told(method, sentence, scans):
    decoder, *_ = tiny_decoder(scans=scans)
    policy = type("Broken", (kv.CachePolicy,), {"compress": method})(budget=0.5)
    with pytest.raises(ValueError, match=f"Broken.compress .*{sentence}"):
        jax.eval_shape(lambda p: kv.prefill(decoder, p, INPUTS, PROMPT, policy), PARAMS)


def test_scores_of_another_shape_than_the_slots_are_told():
    policy = type("Broken", (kv.CachePolicy,), {"token_scores": lambda _, layer, context: layer.mass[:, 0]})(budget=0.5)
    for outer in (policy, kv.Protected(policy)):
        with pytest.raises(ValueError, match=r"Broken: scores are of shape \[1, 64\].* = \[1, 2, 64\]: token_scores"):
            jax.eval_shape(lambda p, outer=outer: kv.prefill(DECODER, p, INPUTS, PROMPT, outer), PARAMS)


def test_a_carry_that_the_decoder_does_not_hand_on_is_told():
    def step(params, inputs, positions, caches, carry, attend, logit_positions):
        def forgetful(layer, q, k, v, cache, carry, **inputs):
            return attend(layer, q, k, v, cache, None, **inputs)

        return DECODER.step(params, inputs, positions, caches, carry, forgetful, logit_positions)

    decoder = kv.Decoder(step, DECODER.num_layers)
    with pytest.raises(ValueError, match=r"a carry of None, where FirstLayersChoice needs one of float32\[1, 64\]"):
        jax.eval_shape(lambda p: kv.prefill(decoder, p, INPUTS, PROMPT, POLICIES[0]), PARAMS)


def silent(params, inputs, positions, caches, carry, attend, logit_positions):
    """A decoder that hands on nothing but q, k and v."""

    def bare(layer, q, k, v, cache, carry, **_):
        return attend(layer, q, k, v, cache, carry)

    return DECODER.step(params, inputs, positions, caches, carry, bare, logit_positions)


def test_a_decoder_that_gives_less_is_told_in_a_sentence():
    decoder = kv.Decoder(silent, DECODER.num_layers)
    with pytest.raises(
        ValueError, match=r"LargeOutputs needs output_weights.*attend\(layer, q, k, v, cache, carry, out"
    ):
        jax.eval_shape(lambda p: kv.prefill(decoder, p, INPUTS, PROMPT, POLICIES[2]), PARAMS)
    jax.eval_shape(lambda p: kv.prefill(decoder, p, INPUTS, PROMPT, kv.SnapKV(budget=0.9, window_size=8)), PARAMS)


def test_a_score_that_is_no_number_is_told():
    class Root(kv.Wrapper):
        def token_scores(self, layer, context):
            return jnp.sqrt(-1.0 - jnp.abs(self.inner.token_scores(layer, context)))

    for inner in (kv.SnapKV(budget=0.5, window_size=8), kv.AccKV(budget=0.5)):
        _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, inner)
        kv.check_finite(cache)
        _, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, Root(inner))
        with pytest.raises(ValueError, match=r"scores or outputs of batch rows \[0\] are not finite"):
            kv.check_finite(cache)


def test_layer_numbers_may_be_numpys():
    def numbered(params, inputs, positions, caches, carry, attend, logit_positions):
        def numpys(layer, *args, **inputs):
            return attend(np.int64(layer), *args, **inputs)

        return DECODER.step(params, inputs, positions, caches, carry, numpys, logit_positions)

    policy = kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.5, 0.5))
    decoder = kv.Decoder(numbered, DECODER.num_layers)
    _, cache = jax.eval_shape(lambda p: kv.prefill(decoder, p, INPUTS, PROMPT, policy), PARAMS)
    assert [layer.slots for layer in cache.layers] == [48, 16]


def stepping(change, scans):
    """A decoder whose `attend` is called with, or whose step returns, what `change` makes of it."""

    def step(params, inputs, positions, caches, carry, attend, logit_positions):
        given = change.get("given", lambda *x: x)

        def changed(layer, q, k, v, cache, carry, **_):
            out, cache, carry = attend(layer, *given(q, k, v), cache, carry)
            return jnp.zeros_like(q), cache, carry

        inner, *_ = tiny_decoder(scans=change.get("runs", scans))
        found = inner.step(params, inputs, positions, caches, carry, changed, logit_positions)
        return change.get("returned", lambda found, _: found)(found, caches)

    return kv.Decoder(step, change.get("layers", 2), scans)


SHAPES = r"attend takes q \[B, T, N, H\], k and v \[B, T, K, H\].*got \[1, "


@pytest.mark.parametrize(
    ("scans", "change", "sentence"),
    [
        (False, {"runs": True}, "scans=False gets 2 caches.* needs scans=True"),
        (True, {"runs": False}, "a whole Stack as a layer's cache.* set scans=False"),
        (False, {"layers": 3, "returned": lambda f, _: (f[0], f[1][:2], f[2])}, "returned 2 entries.* not 3"),
        (True, {"returned": lambda f, _: (f[0], f[1] * 2, f[2])}, "returned 2 entries.* not 1: .*run_layers"),
        (True, {"returned": lambda f, _: (f[0], f[1][0], f[2])}, "returned a LayerCache as its caches"),
        (True, {"returned": lambda f, _: f[:2]}, "returns logits, a tuple of caches and the carry"),
        (True, {"returned": lambda f, caches: (f[0], caches, f[2])}, "not what attend returned"),
        (False, {"returned": lambda f, caches: (f[0], caches, f[2])}, "not what attend returned"),
        (True, {"returned": lambda f, _: (f[0][:, None], *f[1:])}, r"logits \[B, V\].*, and not \[1, 1, 32\]"),
        (True, {"returned": lambda f, _: (f[0][0], *f[1:])}, r"logits \[B, V\].*, and not \[32\]"),
        (True, {"given": lambda *qkv: (x.swapaxes(1, 2) for x in qkv)}, SHAPES + r"4, 64, 16\], \[1, 2, 64"),
        (True, {"given": lambda q, k, v: (q[:, :, :3], k, v)}, SHAPES + "64, 3"),
        (True, {"given": lambda q, k, v: (q, k, v[:, :, :1])}, SHAPES + "64, 4"),
        (True, {"given": lambda q, k, v: (q, k[:, 1:], v[:, 1:])}, SHAPES + "64, 4"),
        (True, {"given": lambda q, k, v: (q[..., :8], k, v)}, SHAPES + "64, 4, 8"),
        (True, {"given": lambda *qkv: (x[:, :, 0] for x in qkv)}, SHAPES + r"64, 16\],"),
    ],
)
def test_a_wrong_decoder_is_told_what_is_wrong(scans, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(lambda p: kv.prefill(stepping(change, scans), p, INPUTS, PROMPT, kv.Knorm(budget=0.5)), PARAMS)


def test_an_error_of_the_policy_is_not_laid_to_the_decoder():
    policy = type("Broken", (kv.CachePolicy,), {"token_scores": lambda _, layer, context: context.sums[3]})(budget=0.5)
    with pytest.raises(IndexError, match="tuple index out of range"):
        jax.eval_shape(lambda p: kv.prefill(DECODER, p, INPUTS, PROMPT, policy), PARAMS)


def test_a_decoder_of_other_layers_than_the_step_or_the_cache_is_told():
    def two(params, inputs, positions, caches, carry, attend, logit_positions):
        caches = [attend(i, *[params["embed"][inputs][:, :, None]] * 3, caches[i], carry)[1] for i in range(2)]
        return params["embed"][logit_positions], caches, carry

    def one(params, inputs, positions, caches, carry, attend, logit_positions):
        caches = [attend(0, *[params["embed"][inputs][:, :, None]] * 3, cache, carry)[1] for cache in caches]
        return params["embed"][logit_positions], caches, carry

    policy = kv.Knorm(budget=0.5)
    for step, layers, sentence in (
        (two, 1, "gets 1 caches .num_layers"),
        (two, 3, "returned 2 entries as its caches and not 3"),
        (one, 2, "calls attend for 1 layers, and its num_layers is 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            decoder = kv.Decoder(step, layers)
            jax.eval_shape(lambda p, decoder=decoder: kv.prefill(decoder, p, INPUTS, PROMPT, policy), PARAMS)

    def read(decoder, params):
        logits, cache = kv.prefill(DECODER, params, INPUTS, PROMPT, policy, reserved_slots=4)
        if decoder is None:
            return kv.extend(kv.Decoder(DECODER.step, 3), params, INPUTS, PROMPT, cache, policy)
        return kv.decode(decoder, params, kv.start_decoding(logits, cache, jax.random.key(0)), policy, steps=4)

    for decoder in (None, kv.Decoder(DECODER.step, 3)):
        with pytest.raises(ValueError, match="the cache has 2 layers, and the decoder 3"):
            jax.eval_shape(lambda p, decoder=decoder: read(decoder, p), PARAMS)


def test_options_of_a_decoder():
    with pytest.raises(ValueError, match="step is a function that runs the decoder, not 3"):
        kv.Decoder(3, num_layers=2)
    with pytest.raises(ValueError, match="scans is True or False, not 'yes'"):
        kv.Decoder(DECODER.step, num_layers=2, scans="yes")


def test_a_step_function_alone_is_no_decoder():
    policy, cache = kv.Knorm(budget=0.5), kv.KVCache((), PROMPT.length, PROMPT.length)
    state = kv.DecodeState(cache, PROMPT.length, PROMPT.length > 0, jax.random.key(0))
    for call in (
        lambda: kv.prefill(DECODER.step, PARAMS, INPUTS, PROMPT, policy),
        lambda: kv.score(DECODER.step, PARAMS, INPUTS, PROMPT, (policy,)),
        lambda: kv.extend(DECODER.step, PARAMS, INPUTS, PROMPT, cache, policy),
        lambda: kv.decode_step(DECODER.step, PARAMS, PROMPT.length, cache, policy, PROMPT.length > 0),
        lambda: kv.decode(DECODER.step, PARAMS, state, policy, steps=4),
        lambda: kv.generate(DECODER.step, PARAMS, INPUTS, PROMPT, policy),
    ):
        with pytest.raises(ValueError, match=r"a decoder is Decoder\(step, num_layers=...\), not "):
            call()

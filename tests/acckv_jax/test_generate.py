"""One call: what it gives is what the functions below it give, alone, in batches and in conversations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer, tiny_decoder
from tests.tiers import quick_first

DECODER, PARAMS, INPUTS, PROMPT = tiny_decoder(50)  # padded to 64
QUESTION = np.array([[3, 1, 4, 1, 5, 9]])
TEXT = kv.make_prompt(np.zeros(QUESTION.shape, int))
POLICIES = [kv.H2O(budget=0.5, evict_every=4), kv.Full(), kv.Quantized(kv.Knorm(budget=0.5))]
by_policy = pytest.mark.parametrize("policy", quick_first(POLICIES), ids=lambda policy: type(policy).__name__)


def generate(policy: kv.CachePolicy, inputs=INPUTS, prompt=PROMPT, **options) -> kv.Generation:
    return kv.generate(DECODER, PARAMS, inputs, prompt, policy, **options)


def by_single_steps(policy: kv.CachePolicy, logits, cache, count: int):
    """`count` greedy tokens, one call of `decode_step` each; the cache then holds all but the last one."""
    token, tokens = logits.argmax(-1).astype(jnp.int32), []
    for number in range(count):
        tokens.append(int(token[0]))
        if number < count - 1:
            logits, cache = kv.jitted.decode_step(DECODER, PARAMS, token, cache, policy, jnp.ones(1, bool))
            token = logits.argmax(-1).astype(jnp.int32)
    return tokens, token, cache


@by_policy
def test_a_conversation_equals_single_steps(policy):
    first = generate(policy, max_new_tokens=20)
    second = generate(policy, QUESTION, TEXT, max_new_tokens=3, after=first)
    reserved = policy.reserved_slots(32)
    inputs, prompt = (
        np.pad(INPUTS, ((0, 0), (0, 14))),
        kv.make_prompt(np.pad(PROMPT.modality, ((0, 0), (0, 14))), np.array([50])),
    )
    logits, cache = kv.jitted.prefill(DECODER, PARAMS, inputs, prompt, policy, reserved_slots=reserved)
    tokens, last, cache = by_single_steps(policy, logits, cache, 20)
    assert first.tokens[0].tolist() == tokens and first.num_tokens.tolist() == [20]
    _, cache = kv.jitted.decode_step(DECODER, PARAMS, last, cache, policy, jnp.ones(1, bool))
    text, short = np.pad(QUESTION, ((0, 0), (0, 58))), kv.make_prompt(np.zeros((1, 64), int), np.array([6]))
    logits, cache = kv.jitted.extend(
        DECODER, PARAMS, text, short, cache, policy, reserved_slots=policy.reserved_slots(16)
    )
    tokens, _, _ = by_single_steps(policy, logits, cache, 3)
    assert second.tokens[0].tolist() == tokens
    assert second.state.cache.length.tolist() == [50 + 20 + 6 + 2]


def test_one_program_for_any_number_of_tokens():
    longest = generate(kv.Full(), max_new_tokens=16).tokens
    compiled = kv.jitted.decode._cache_size()
    for count in (1, 2, 7, 15):
        np.testing.assert_array_equal(generate(kv.Full(), max_new_tokens=count).tokens, longest[:, :count])
    assert kv.jitted.decode._cache_size() == compiled


def test_rows_end_at_their_stop_tokens():
    inputs = np.concatenate([INPUTS, INPUTS[:, ::-1]])
    prompt = kv.make_prompt(np.repeat(np.asarray(PROMPT.modality), 2, 0), np.array([50, 41]))
    free = generate(kv.Full(), inputs, prompt, max_new_tokens=12)
    stop = int(free.tokens[1, -1])
    found = generate(kv.Full(), inputs, prompt, max_new_tokens=12, stop_token_ids=(stop,))
    for row in range(2):
        at = np.flatnonzero(free.tokens[row] == stop)
        count = at[0] + 1 if len(at) else 12
        assert found.num_tokens[row] == count
        np.testing.assert_array_equal(found.tokens[row, :count], free.tokens[row, :count])
        alone = generate(
            kv.Full(),
            inputs[row : row + 1],
            jax.tree.map(lambda x, row=row: x[row : row + 1], prompt),
            max_new_tokens=12,
            stop_token_ids=(stop,),
        )
        np.testing.assert_array_equal(alone.tokens[0, :count], free.tokens[row, :count])


def test_seeds_decide_what_is_sampled():
    warm = kv.Sample(temperature=2.0)
    draws = [generate(kv.Full(), max_new_tokens=12, sampler=warm, seed=seed).tokens.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_what_was_kept_and_what_it_takes():
    found = generate(kv.AccKV(budget=0.5, gate="none"), max_new_tokens=2)
    assert [sum(layer.values()) for layer in found.kept] == [25.0, 25.0]
    assert [layer["text"] for layer in found.kept] == [8.0, 8.0]
    assert found.cache_bytes.prompt == 2 * 2 * 32 * 2 * 16 * 4  # layers, k and v, half the bucket, heads, size, bytes


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"policy": kv.AccKV(budget=4)}, "smallest possible budget is 9"),
        ({"policy": kv.Full(), "max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(**options)


def test_nan_is_an_error():
    params = PARAMS | {"embed": PARAMS["embed"].at[INPUTS[0, 7]].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"batch rows \[0\] are not finite"):
        kv.generate(DECODER, params, INPUTS, PROMPT, kv.Full())


COMPACTED = [kv.PerLayer(kv.AccKV(budget=0.5), shares=(0.9, 0.6)), kv.Quantized(kv.AccKV(budget=0.5))]
step = jax.jit(kv.decode_step, static_argnames=("decoder", "policy"))


@pytest.mark.complete
@pytest.mark.parametrize("policy", COMPACTED)
def test_compact_of_layers_of_several_sizes_and_of_integers(policy):
    logits, cache = kv.jitted.prefill(DECODER, PARAMS, INPUTS, PROMPT, policy, reserved_slots=2)
    small = kv.compact(cache)
    used = [int(np.asarray(layer.valid).sum(-1).max()) for layer in cache.layers]
    assert [layer.slots - 2 for layer in small.layers] == used
    assert kv.cache_bytes(small).prompt < kv.cache_bytes(cache).prompt
    token, active = logits.argmax(-1).astype(jnp.int32), jnp.ones(1, bool)
    found, _ = step(DECODER, PARAMS, token, small, policy, active)
    expected, _ = step(DECODER, PARAMS, token, cache, policy, active)
    np.testing.assert_allclose(found, expected, atol=2e-2 if isinstance(policy, kv.Quantized) else 1e-5)


@pytest.mark.complete
def test_a_decode_loop_holds_one_layers_dense_slots_at_most():
    """Integers are read where they are used; moved out of the loop, all layers would be dense at once."""

    def scratch(layers: int) -> int:
        model = TinyTransformer(num_layers=layers)
        params, policy = jax.eval_shape(model.init, jax.random.key(0)), kv.Quantized(kv.Full())
        decoder, tokens = kv.Decoder(model, layers), 4096
        prompt = kv.make_prompt(np.zeros((1, tokens), int))
        ids = np.zeros((1, tokens), np.int32)
        run = jax.jit(kv.prefill, static_argnames=("decoder", "policy", "reserved_slots"))
        logits, cache = jax.eval_shape(lambda p: run(decoder, p, ids, prompt, policy, reserved_slots=16), params)
        state = jax.eval_shape(kv.start_decoding, logits, cache, jax.random.key(0))
        lowered = kv.jitted.decode.lower(decoder, params, state, policy.while_decoding(), steps=16)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    dense = 2 * 4096 * 2 * 16 * 4
    assert scratch(6) - scratch(2) < 2 * dense  # four more layers, less than two dense ones


def test_several_questions_follow_one_answer_and_a_refused_one_ends_nothing():
    policy = kv.Full()
    first = generate(policy, max_new_tokens=3)
    with pytest.raises(ValueError, match="the prompt has 2 rows"):
        generate(policy, QUESTION.repeat(2, 0), kv.make_prompt(np.zeros((2, 6), int)), after=first)
    one, other = (generate(policy, QUESTION, TEXT, max_new_tokens=3, after=first) for _ in range(2))
    np.testing.assert_array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_new_tokens": 2.5}, "max_new_tokens must be at least 1 token"),
        ({"seed": 1.5}, "a seed is a whole number"),
        ({"seed": 2**32}, "a seed is a whole number"),
        ({"seed": -1}, "a seed is a whole number"),
        ({"stop_token_ids": "1"}, "stop_token_ids are several token ids"),
        ({"stop_token_ids": (1.5,)}, "stop_token_ids are several token ids"),
        ({"stop_token_ids": 1}, "stop_token_ids are several token ids"),
        ({"positions": jnp.zeros((1, 3), int)}, r"for a prompt of \[B, T\] = \[1, 50\] tokens, not of shape \[1, 3\]"),
        ({"after": 5}, "after is what an earlier generate returned"),
        ({"prompt": np.zeros((1, 50))}, "a prompt is made by make_prompt"),
        ({"policy": kv.SnapKV}, "a policy is an object such as SnapKV"),
        ({"policy": "snapkv"}, "a policy is an object such as SnapKV"),
        ({"policy": kv.PerLayer(kv.Knorm(budget=0.5), shares=(1.0,))}, "for 1 layers, and the decoder has 2"),
        ({"sampler": lambda logits, key: logits}, "the sampler returned tokens of shape"),
    ],
)
def test_wrong_arguments_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(**{"policy": kv.Knorm(budget=0.5), "max_new_tokens": 2} | options)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1e-45}, {"temperature": "1"}, {"top_k": 1.5}])
def test_samplers_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kv.Sample(**options)


def test_a_decoder_has_layers():
    with pytest.raises(ValueError, match="num_layers is how many layers call attend"):
        kv.Decoder(DECODER.step, 0)

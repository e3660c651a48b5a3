"""KVzip and the second pass: against kvpress, dense attention, and what `probe` promises."""

import functools
import pathlib

import jax
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.attention import attend
from acckv_jax.cache import full_layer
from acckv_jax.queries import QueryWeights
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.recorded import Recording, replay_layers
from tests.oracles.attention_numpy import causal_attention
from tests.tiers import quick_first
from tests.tolerances import FP32

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "kvpress_kvzip.npz"
POLICY = kv.KVzip(budget=0.5)


@functools.partial(jax.jit, static_argnames="policy")
def twice(recordings: list[Recording], prompt: kv.Prompt, again: kv.Prompt, policy: kv.KVzip) -> kv.Scored:
    decoder = kv.Decoder(replay_layers, num_layers=len(recordings))
    _, scored = kv.score(decoder, recordings, prompt.modality, prompt, (policy,))
    return kv.probe(decoder, recordings, again.modality, again, scored, (policy,))


@pytest.mark.parametrize("number", quick_first(range(2)))
def test_scores_are_those_of_kvpress(number):
    with np.load(GOLDEN) as golden:
        q, k = (golden[f"{name}_{number}"].swapaxes(1, 2)[:, None] for name in "qk")
        expected, length = golden[f"scores_{number}"], int(golden[f"length_{number}"])
    prompt, again = (kv.make_prompt(np.zeros((1, n), int)) for n in (length, q.shape[2] - length))
    scored = twice([Recording(*layer) for layer in zip(q, k, k, strict=True)], prompt, again, POLICY)
    found = np.stack([layer[0] for layer in scored.attention_sums(POLICY.queries[0])])
    np.testing.assert_allclose(found, expected, **FP32)
    for layer, scores in zip(kv.prune(scored, POLICY).layers, expected, strict=True):
        best = np.sort(np.argsort(-scores, axis=-1, kind="stable")[:, : length // 2], axis=-1)
        np.testing.assert_array_equal(layer.index[0], best)


@pytest.mark.parametrize("tokens", quick_first([40, 300]))  # fewer rows than a block, and several blocks
def test_the_largest_attention_is_that_of_dense_attention(tokens):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((tokens, 4, 8)), rng.standard_normal((tokens, 2, 8))
    index = np.arange(tokens)[None].astype(np.int32)
    counted = (rng.random((1, tokens)) < 0.3).astype(np.float32)
    given = (x[None].astype(np.float32) for x in (q, k))
    layer_of, weights = (lambda k: full_layer(k, k, index, index * 0, index >= 0)), QueryWeights(counted, reduce="max")
    run = jax.jit(lambda q, k: attend(q, layer_of(k), index, (weights,), aligned=True))
    _, (largest,) = run(*given)
    dense = causal_attention(q.swapaxes(0, 1), k.swapaxes(0, 1)) * counted[0][:, None]
    np.testing.assert_allclose(largest[0], dense.reshape(2, 2, tokens, tokens).max((1, 2)), **FP32)


@pytest.mark.parametrize("scans", quick_first([False, True]))
def test_probes_add_up_and_what_comes_after_them_stays(scans):
    decoder, params, inputs, prompt = tiny_decoder(scans=scans)
    ids, modality = np.asarray(inputs), np.asarray(prompt.modality)
    head, tail = (kv.make_prompt(part) for part in (modality[:, :56], modality[:, 56:]))
    score = functools.partial(kv.jitted.score, decoder, params, policies=(POLICY, kv.H2O()))
    _, before = score(ids[:, :56], head, complete=False)
    first, second = (
        (ids[:, :8], kv.make_prompt(np.zeros((1, 8), int))),
        (ids[:, 8:24], kv.make_prompt(np.zeros((1, 16), int))),
    )

    def probed(*instructions: tuple) -> kv.Scored:
        found = before
        for tokens, described in instructions:
            found = kv.jitted.probe(decoder, params, tokens, described, found, (POLICY,))
        return found

    (name,) = POLICY.queries
    one, other, both = (
        np.stack(probed(*tokens).attention_sums(name)) for tokens in ((first,), (second,), (first, second))
    )
    assert (one != other).any() and ((one > 0) & (one <= 1)).all()
    np.testing.assert_array_equal(both, np.maximum(one, other))

    _, scored = score(ids[:, 56:], tail, before=probed(first))
    _, alone = score(ids[:, 56:], tail, before=before)
    np.testing.assert_array_equal(scored.attention_sums(kv.QuerySet())[1], alone.attention_sums(kv.QuerySet())[1])
    for layer, largest in zip(kv.prune(scored, kv.KVzip(budget=20)).layers, one, strict=True):
        for at, scores in zip(layer.index[0], largest[0], strict=True):
            best = np.sort(np.argsort(-scores, kind="stable")[:12])
            np.testing.assert_array_equal(at, np.concatenate([best, np.arange(56, 64)]))
    late = kv.jitted.probe(decoder, params, *first, scored, (POLICY,))  # sees the others, too
    assert np.isfinite(np.stack(late.attention_sums(name))).all()


def test_a_nan_in_a_probe_lowers_the_flag_of_its_row():
    decoder, params, inputs, prompt = tiny_decoder()
    both = np.concatenate([inputs, inputs])
    prompts = kv.make_prompt(np.repeat(np.asarray(prompt.modality), 2, 0))
    params = params | {"embed": params["embed"].at[31].set(np.nan)}
    tokens, ids = np.zeros((2, 8), np.int32), np.where(both == 31, 0, both)
    tokens[1, 3] = 31
    _, scored = kv.jitted.score(decoder, params, ids, prompts, (POLICY,))
    scored = kv.jitted.probe(decoder, params, tokens, kv.make_prompt(tokens * 0), scored, (POLICY,))
    with pytest.raises(ValueError, match=r"batch rows \[1\] are not finite"):
        kv.check_finite(kv.prune(scored, POLICY))


def test_a_second_pass_that_is_missing_is_told():
    decoder, params, inputs, prompt = tiny_decoder()
    with pytest.raises(
        ValueError, match="Protected reads what further .* prefill is one pass: call score, probe and prune instead"
    ):
        kv.generate(decoder, params, inputs, prompt, kv.Protected(kv.KVzip(budget=0.5)))
    _, scored = kv.jitted.score(decoder, params, inputs, prompt, (POLICY,))
    with pytest.raises(ValueError, match="KVzip reads a second pass over the prompt: call probe before prune"):
        kv.prune(scored, POLICY)
    with pytest.raises(ValueError, match="no policy reads a second pass"):
        kv.probe(decoder, params, inputs, prompt, scored, (kv.H2O(),))
    two = kv.make_prompt(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="the prompt has 2 rows, and what it follows has 1"):
        kv.probe(decoder, params, np.zeros((2, 4), np.int32), two, scored, (POLICY,))

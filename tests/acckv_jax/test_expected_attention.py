"""Expected attention against kvpress, and its closed form against sampled queries."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax.cache import full_layer
from acckv_jax.policy import Context
from acckv_jax.testing import tiny_decoder
from tests.tiers import quick_first

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "kvpress_expected_attention.npz"
THETA = 10_000.0


@functools.partial(jax.jit, static_argnames="policy")
def scores(k: jax.Array, v: jax.Array, q: jax.Array, position: jax.Array, policy: kv.ExpectedAttention) -> jax.Array:
    """Of one row: k and v [T, K, H], unrotated q [T, N, H], the rotary position of the next token."""
    tokens, size = k.shape[0], k.shape[-1]
    index = jnp.arange(tokens)[None]
    layer = full_layer(k[None], v[None], index, jnp.zeros_like(index), index >= 0)
    frequencies = 1.0 / THETA ** (jnp.arange(0, size, 2) / size)
    inputs = {"unrotated_q": q[None], "rotary_frequencies": frequencies}
    length = jnp.full(1, tokens)
    return policy.token_scores(layer, Context(jnp.int32(0), length, position[None], length, inputs=inputs))[0]


@pytest.mark.parametrize("number", quick_first(range(4)))
def test_keeps_the_slots_that_kvpress_keeps(number):
    with np.load(GOLDEN) as golden:
        q, k, v = (golden[f"{name}_{number}"].swapaxes(0, 1) for name in ("unrotated_q", "k", "v"))
        expected = golden[f"kept_{number}"]
        future, sinks, covariance, norms, epsilon = golden[f"options_{number}"].tolist()
    policy = kv.make_policy(
        "expected_attention",
        budget=expected.shape[1],
        future_positions=int(future),
        sinks=int(sinks),
        covariance=bool(covariance),
        value_norm=bool(norms),
        epsilon=epsilon,
    )
    found, kept = np.asarray(scores(k, v, q, jnp.int32(len(k)), policy)), expected.shape[1]
    ranked = np.argsort(-found, axis=-1, kind="stable")
    np.testing.assert_array_equal(np.sort(ranked[:, :kept], axis=-1), expected)
    last, first = np.take_along_axis(found, ranked[:, kept - 1 : kept + 1], axis=-1).T
    assert ((last - first) / last).min() > 1e-3, "the last kept and first dropped token are too close to compare"


def test_the_expectation_is_that_of_sampled_queries():
    """Queries drawn from the Gaussian, all rotated by the mean rotation, attend as the closed form says."""
    rng = np.random.default_rng(0)
    tokens, size, position, future = 40, 4, 1000, 64
    q, k, v = (rng.standard_normal((tokens, 1, size)) for _ in range(3))
    angles = (position + np.arange(future))[:, None] / THETA ** (np.arange(0, size, 2) / size)
    turn = np.zeros((size, size))
    for i, (cos, sin) in enumerate(zip(np.cos(angles).mean(0), np.sin(angles).mean(0), strict=True)):
        j = i + size // 2
        turn[[i, i, j, j], [i, j, i, j]] = cos, -sin, sin, cos
    drawn = rng.multivariate_normal(q[4:, 0].mean(0), np.cov(q[4:, 0].T, bias=True), 400_000) @ turn.T
    attention = np.exp(drawn @ k[4:, 0].T / np.sqrt(size)).mean(0)
    expected = attention / attention.sum() * np.linalg.norm(v[4:, 0], axis=-1)
    policy = kv.ExpectedAttention(budget=0.5, future_positions=future)
    given = (jnp.asarray(x, jnp.float32) for x in (k, v, q))
    found = np.asarray(scores(*given, jnp.int32(position), policy))[0]
    assert np.isposinf(found[:4]).all()
    np.testing.assert_allclose(found[4:], expected, rtol=0.02)


def test_a_decoder_that_hands_nothing_on_is_told():
    def step(params, inputs, positions, caches, carry, attend, logit_positions):
        x = jnp.zeros((*inputs.shape, 2, 4))
        out, cache, carry = attend(0, x, x, x, caches[0], carry)
        return out[:, 0, 0], (cache,), carry

    _, _, inputs, prompt = tiny_decoder()
    with pytest.raises(ValueError, match="ExpectedAttention needs unrotated_q, which this decoder does not hand on"):
        kv.prefill(kv.Decoder(step, num_layers=1), {}, inputs, prompt, kv.ExpectedAttention(budget=0.5))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"future_positions": 0}, "future_positions must be at least 1"),
        ({"sinks": -1}, "sinks is a number of tokens"),
        ({"covariance": 1}, "covariance must be a proper bool"),
    ],
)
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        kv.ExpectedAttention(budget=0.5, **options)


def test_a_budget_without_a_slot_beside_the_sinks_is_told():
    _, _, _, prompt = tiny_decoder()
    with pytest.raises(ValueError, match="ExpectedAttention's sinks .* and one token need 5"):
        kv.ExpectedAttention(budget=4).check(kv.count_tokens(prompt))

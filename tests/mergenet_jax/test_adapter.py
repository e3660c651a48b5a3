"""The adapter against upstream's outputs, spectral norms, gradients and steps (golden file), and its own options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mergenet_jax import MergeConfig, Transfer, apply_adapter, init_adapter
from mergenet_jax.learner import updated
from mergenet_jax.spectral import WARM_UP, power_iteration
from mergenet_jax.state import adapter_optimizer
from tests.mergenet_jax import reference, seeded
from tests.mergenet_jax.cases import CASES, GOLDEN, PUBLISHED, QUICK, moves, shapes, split_vectors
from tests.mergenet_jax.names import to_ours, to_theirs, vectors_to_ours
from tests.tolerances import FP32, LOGITS

EXPECTED = np.load(GOLDEN)
KEY = jax.random.key(0)


def config_of(case, **changes):
    options = {"layers": case.layers, "heads": case.heads, "weight_decay": case.decay, "learning_rate": 1e-2}
    return MergeConfig.authors_code(**options, attention_dropout=0.0, output_dropout=0.0, **changes)


@functools.cache
def program(config, *, training):
    key = KEY if training else None
    return jax.jit(lambda params, vectors, t, s: apply_adapter(params, vectors, t, s, config, key=key))


def start(case, number):
    vectors = split_vectors(case, EXPECTED[f"vectors_{number}"][0])
    return to_ours(case, seeded.weights(case)), vectors_to_ours(case, vectors)


def complete(number):
    return pytest.param(number, marks=pytest.mark.complete)


@pytest.mark.parametrize("number", [number if number in QUICK else complete(number) for number in range(len(CASES))])
def test_equals_upstream(number):
    case = CASES[number]
    params, vectors = start(case, number)
    inputs = seeded.target(case), seeded.source(case)
    out, same = program(config_of(case), training=False)(params, vectors, *inputs)
    np.testing.assert_allclose(out, EXPECTED[f"eval_{number}"], **FP32)
    jax.tree.map(np.testing.assert_array_equal, same, vectors)  # no power iteration in evaluation
    for call in range(3):
        out, vectors = program(config_of(case), training=True)(params, vectors, *inputs)
        np.testing.assert_allclose(out, EXPECTED[f"train_{number}"][call], **FP32)
        expected = vectors_to_ours(case, split_vectors(case, EXPECTED[f"vectors_{number}"][call + 1]))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), vectors, expected)


@pytest.mark.parametrize("number", [1, *map(complete, (3, 5, 8))])
def test_learns_as_upstream(number):
    """Gradients of the delta rule, clipping, AdamW with two groups of weight decay: two steps."""
    case = CASES[number]
    params, vectors = start(case, number)
    config = config_of(case)
    optimizer = adapter_optimizer(Transfer("a", "b", (), config))

    @jax.jit
    def learn(params, opt_state, vectors, target, source, final):
        out, back, after = jax.vjp(
            lambda p: apply_adapter(p, vectors, target, source, config, key=KEY), params, has_aux=True
        )
        (gradient,) = back(out - final)
        return out, after, gradient, *updated(optimizer, gradient, opt_state, params)

    opt_state = optimizer.init(params)
    for step in range(2):
        inputs = (make(case, step) for make in (seeded.target, seeded.source, seeded.final))
        out, vectors, gradient, params, opt_state = learn(params, opt_state, vectors, *inputs)
        # AdamW divides by a gradient's size, and so magnifies rounding errors of those near zero.
        np.testing.assert_allclose(out, EXPECTED[f"step_outs_{number}"][step], **(FP32, LOGITS)[step])
        if step == 0:
            found = seeded.summaries(case, to_theirs(case, gradient))
            expected = EXPECTED[f"grads_{number}"]
            np.testing.assert_allclose(found[:, 3:], expected[:, 3:], rtol=1e-4, atol=1e-5 * expected[:, 1].max())
    found = seeded.summaries(case, to_theirs(case, params))
    rows = [i for i, name in enumerate(shapes(case)) if moves(name)]
    np.testing.assert_allclose(found[rows, 3:], EXPECTED[f"stepped_{number}"][rows, 3:], rtol=1e-4, atol=1e-5)


@pytest.mark.complete
def test_published_size():
    weights = seeded.weights(PUBLISHED)
    vectors = reference.iterate(weights, seeded.unset_vectors(PUBLISHED), WARM_UP)
    params, start = to_ours(PUBLISHED, weights), vectors_to_ours(PUBLISHED, vectors)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == EXPECTED["published_count"] == 37_633_920
    made = jax.eval_shape(lambda k: init_adapter(k, PUBLISHED.target, PUBLISHED.source, config_of(PUBLISHED)), KEY)
    assert jax.tree.map(jnp.shape, (params, start)) == jax.tree.map(lambda x: x.shape, made)
    inputs = seeded.target(PUBLISHED), seeded.source(PUBLISHED)
    out, _ = program(config_of(PUBLISHED), training=False)(params, start, *inputs)
    found = seeded.summary(PUBLISHED, "out", np.asarray(out), entries=512)
    np.testing.assert_allclose(found[1:], EXPECTED["published_eval"][1:], rtol=1e-4, atol=1e-4)


SHAPES = (12, 20), (10, 24)


@functools.cache
def drawn(config):
    params, vectors = init_adapter(KEY, *SHAPES, config)
    target, source = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(SHAPES, 1))
    return params, vectors, target, source


def test_singular_vectors_after_construction():
    params, vectors, _, _ = drawn(MergeConfig())
    for name in ("up", "down"):
        for kernel, u, v in zip(params["layers"][name]["kernel"], vectors[name]["u"], vectors[name]["v"], strict=True):
            assert np.linalg.norm(u) == pytest.approx(1, abs=1e-5)
            sigma = np.linalg.norm(kernel, 2)
            assert sigma * 0.9 < v @ kernel @ u <= sigma * 1.0001
            found = jax.lax.fori_loop(0, 500, lambda _, x, w=kernel: power_iteration(w, x), {"u": u, "v": v})
            u, v = found["u"], found["v"]
            assert v @ kernel @ u == pytest.approx(sigma, rel=1e-3)


def test_dropout_in_training_alone():
    config = MergeConfig()
    params, vectors, target, source = drawn(config)
    still = dataclasses.replace(config, attention_dropout=0.0, output_dropout=0.0)
    plain, _ = program(still, training=True)(params, vectors, target, source)
    run = jax.jit(jax.vmap(lambda k: apply_adapter(params, vectors, target, source, config, key=k)[0]))
    outs = run(jax.random.split(KEY, 200))
    assert np.abs(outs[0] - outs[1]).max() > 0.1
    assert np.abs(outs.mean(0) - plain).mean() < 0.25 * np.abs(outs[0] - plain).mean()
    a, b = (program(config, training=False)(params, vectors, target, source)[0] for _ in range(2))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rescale", ["row_norm", "frobenius"])
def test_rescaling(rescale):
    config = MergeConfig(rescale=rescale)
    params, vectors, target, source = drawn(config)
    out, _ = apply_adapter(params, vectors, target * 0.01, source, config)
    axis = 1 if rescale == "row_norm" else None
    np.testing.assert_allclose(np.linalg.norm(out, axis=axis), np.linalg.norm(target * 0.01, axis=axis), rtol=1e-5)
    plain, _ = apply_adapter(params, vectors, target * 0.01, source, MergeConfig())
    assert np.linalg.norm(plain) > 5 * np.linalg.norm(target * 0.01)  # what rescaling mends


def test_gated_begins_as_the_target_and_can_learn():
    config = MergeConfig.plus()
    params, vectors, target, source = drawn(config)

    def loss(params):
        return jnp.sum(apply_adapter(params, vectors, target, source, config, key=KEY)[0] ** 2)

    np.testing.assert_array_equal(program(config, training=False)(params, vectors, target, source)[0], target)
    assert np.abs(jax.jit(jax.grad(loss))(params)["gate"]["out"]["kernel"]).max() > 0


def test_input_norm_lets_the_adapter_see_the_source():
    """Raw weights of usual scale hardly change the output of a fresh adapter; normalised ones do."""

    def influence(config):
        params, vectors, target, source = drawn(config)
        run = program(config, training=False)
        outs = [run(params, vectors, 0.05 * target, s)[0] for s in (0.05 * source, 0 * source)]
        return np.linalg.norm(outs[0] - outs[1]) / np.linalg.norm(outs[0])

    assert influence(MergeConfig(input_norm=True)) > 4 * influence(MergeConfig())


def test_positions_tell_rows_apart():
    config = MergeConfig(positions=True)
    params, vectors, target, source = drawn(config)
    turned = [apply_adapter(params, vectors, target, s, config)[0] for s in (source, source[::-1])]
    assert np.abs(turned[0] - turned[1]).max() > 1e-3


def test_low_precision_targets_keep_their_type():
    params, vectors, target, source = drawn(MergeConfig())
    out, _ = apply_adapter(params, vectors, target.astype(jnp.bfloat16), source.astype(jnp.bfloat16), MergeConfig())
    assert out.dtype == jnp.bfloat16

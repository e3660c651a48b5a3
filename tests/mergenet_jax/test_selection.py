"""Kernels that start as the source's, and the residual that is held, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mergenet_jax as mn
from mergenet_jax.selection import select
from tests.mergenet_jax.learners import batch, learner, perceptron, step_alone
from tests.tolerances import FP32

KEY = jax.random.key(3)
QUICK = {"attention_dropout": 0.0, "output_dropout": 0.0, "layers": 1}


@pytest.mark.parametrize(
    ("target", "source", "rows", "columns"),
    [
        # outputs (last axis) and inputs: those given to, those taken
        ((3, 3, 2, 4), (3, 3, 5, 8), ([0, 1, 2, 3], [0, 2, 4, 6]), ([0, 1], [0, 2])),
        ((6, 3), (3, 7), ([0, 1, 2], [0, 2, 4]), ([0, 2, 4], [0, 1, 2])),
    ],
)
def test_evenly_spaced_channels_are_given(target, source, rows, columns):
    random = np.random.default_rng(0)
    ours, theirs = (random.standard_normal(shape).astype(np.float32) for shape in (target, source))
    expected = ours.copy()
    given = np.stack([theirs[..., i, :][..., rows[1]] for i in columns[1]], -2)
    given = given * np.sqrt(np.mean(ours**2)) / np.sqrt(np.mean(given**2))
    for a, i in enumerate(columns[0]):
        for b, j in enumerate(rows[0]):
            expected[..., i, j] = given[..., a, b]

    def selected(source, layout):
        return select(jnp.asarray(ours), jnp.asarray(source), "in_out", layout)

    np.testing.assert_allclose(selected(theirs, "in_out"), expected, **FP32)
    np.testing.assert_allclose(selected(np.moveaxis(theirs, (-1, -2), (0, 1)), "out_in"), expected, **FP32)
    np.testing.assert_array_equal(selected(np.zeros_like(theirs), "in_out"), ours)


HIDDEN = (mn.Pair("hidden/kernel", "hidden/kernel"),)


LEARNERS = {"teacher": None, "student": learner()}
GATED = mn.MergeConfig.plus(cycle=2, layers=1)


def transfers_of(config, init_pairs=()):
    pairs = (mn.Pair("head/kernel", "head/kernel"),)
    return (mn.Transfer("teacher", "student", pairs, config, optax.sgd(10.0), init_pairs=init_pairs),)


def first_state(config, init_pairs=(), **params):
    params = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)} | params
    return mn.init_state(LEARNERS, transfers_of(config, init_pairs), params, KEY)


@pytest.fixture(scope="module")
def gated_step():
    return jax.jit(mn.train_step(LEARNERS, transfers_of(GATED)))


def test_start_of_real_zero_and_random_sources():
    own, found = perceptron(1, 6), {}
    for source in ("real", "zero", "random"):
        state = first_state(mn.MergeConfig(init_from_source=True, source=source, **QUICK))
        found[source] = state.models["student"].params
        np.testing.assert_array_equal(found[source]["hidden"]["kernel"], own["hidden"]["kernel"])
    taken = perceptron(0, 12)["head"]["kernel"][::2]
    scale = jnp.sqrt(jnp.mean(own["head"]["kernel"] ** 2) / jnp.mean(taken**2))
    np.testing.assert_allclose(found["real"]["head"]["kernel"], taken * scale, **FP32)
    np.testing.assert_array_equal(found["zero"]["head"]["kernel"], own["head"]["kernel"])
    noise = found["random"]["head"]["kernel"]
    np.testing.assert_allclose(jnp.mean(noise**2), jnp.mean(own["head"]["kernel"] ** 2), rtol=1e-5)
    assert jnp.abs(noise - found["real"]["head"]["kernel"]).max() > 0.1


def test_other_kernels_than_those_of_the_pairs_can_start_as_the_source():
    state = first_state(mn.MergeConfig(init_from_source=True, **QUICK), HIDDEN)
    found, own, theirs = state.models["student"].params, perceptron(1, 6), perceptron(0, 12)
    np.testing.assert_array_equal(found["head"]["kernel"], own["head"]["kernel"])
    taken = theirs["hidden"]["kernel"][:, ::2]
    scale = jnp.sqrt(jnp.mean(own["hidden"]["kernel"] ** 2) / jnp.mean(taken**2))
    np.testing.assert_allclose(found["hidden"]["kernel"], taken * scale, **FP32)


def test_a_source_of_any_float_type():
    ours = jnp.ones((4, 3), jnp.float32)
    theirs = jnp.arange(12, dtype=jnp.bfloat16).reshape(4, 3)
    found = select(ours, theirs, "in_out", "in_out")
    theirs = np.asarray(theirs, np.float32)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, theirs / np.sqrt(np.mean(theirs**2)), rtol=1e-2)


def test_a_residual_that_is_not_finite_leaves_the_last_one(gated_step):
    state, step = first_state(GATED), gated_step
    for number in range(2):
        state, _ = step(state, {"student": batch(number)})
    broken = jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, np.nan, x.dtype)), state.models["teacher"].params)
    models = state.models | {"teacher": dataclasses.replace(state.models["teacher"], params=broken)}
    before, kept = state.models["student"], state.adapters[0].residual
    state, told = step(dataclasses.replace(state, models=models), {"student": batch(2)})
    assert told["teacher->student"]["transferred"] == 0
    jax.tree.map(np.testing.assert_array_equal, state.adapters[0].residual, kept)
    expected, _, _ = step_alone(before.params, before.opt_state, batch(2))
    np.testing.assert_allclose(state.models["student"].params["head"]["kernel"], expected["head"]["kernel"], **FP32)


def test_a_gated_residual_is_renewed_and_never_piles_up(gated_step):
    """After each transfer the kernel is what plain training made of it, plus that transfer's output alone."""
    state, step = first_state(GATED), gated_step
    run = jax.jit(lambda *args, key: mn.apply_adapter(*args, GATED, key=key))
    base = np.asarray(state.models["student"].params["head"]["kernel"])
    for number in range(5):
        model, adapter = state.models["student"], state.adapters[0]
        state, _ = step(state, {"student": batch(number)})
        kernel, residual = (np.asarray(x) for x in (model.params["head"]["kernel"], adapter.residual[0][0].T))
        np.testing.assert_allclose(kernel - residual, base, **FP32)
        if number % 2 == 0:
            key = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, number), 0), 0), 1
            )[0]
            one = [jax.tree.map(lambda x: x[0], part[0]) for part in (adapter.params, adapter.vectors)]
            out, _ = run(*one, base.T, perceptron(0, 12)["head"]["kernel"].T, key=key)
            kernel = out.T
        params = model.params | {"head": model.params["head"] | {"kernel": kernel}}
        after, _, _ = step_alone(params, model.opt_state, batch(number))
        np.testing.assert_allclose(state.models["student"].params["head"]["kernel"], after["head"]["kernel"], **FP32)
        base = np.asarray(after["head"]["kernel"]) - np.asarray(state.adapters[0].residual[0][0].T)
    assert np.abs(state.adapters[0].residual[0]).max() > 0.01


def test_kernels_of_different_size_cannot_start_as_each_other():
    wide = {"head": {"kernel": jnp.ones((3, 3, 12, 4))}}
    with pytest.raises(
        ValueError, match=r"head/kernel cannot start as head/kernel: height and width are 1 and \(3, 3\)"
    ):
        first_state(mn.MergeConfig(init_from_source=True), teacher=wide)
    with pytest.raises(ValueError, match="init_from_source copies whole kernels, not encoding='svd'"):
        mn.MergeConfig(init_from_source=True, encoding="svd")
    with pytest.raises(ValueError, match="has init_pairs, which need init_from_source=True"):
        first_state(mn.MergeConfig(), HIDDEN)
    with pytest.raises(ValueError, match="nothing"):
        first_state(mn.MergeConfig(init_from_source=True), (mn.Pair("nothing", "hidden/kernel"),))


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e30])
def test_a_source_that_is_not_finite_is_no_beginning(value):
    teacher = perceptron(0, 12)
    teacher["hidden"]["kernel"] = teacher["hidden"]["kernel"].at[0, 0].set(value)
    with pytest.raises(ValueError, match="hidden/kernel of teacher is not finite, so that nothing can start as it is"):
        first_state(mn.MergeConfig(init_from_source=True), HIDDEN, teacher=teacher)
    own = perceptron(1, 6)["hidden"]["kernel"]
    np.testing.assert_array_equal(select(own, teacher["hidden"]["kernel"], "in_out", "in_out"), own)


def test_two_kernels_cannot_be_one_beginning():
    with pytest.raises(ValueError, match="hidden/kernel of student is to start as two kernels; name it once"):
        first_state(mn.MergeConfig(init_from_source=True), (*HIDDEN, mn.Pair("head/kernel", "hidden/kernel")))

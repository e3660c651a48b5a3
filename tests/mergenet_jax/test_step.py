"""Steps of joint training against the same done by hand, rule by rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mergenet_jax as mn
from mergenet_jax.state import adapter_optimizer
from tests.mergenet_jax.learners import batch, learner, logits, loss, perceptron
from tests.tolerances import FP32

HEADS = mn.Pair("head/kernel", "head/kernel")
HIDDEN = mn.Pair("hidden/kernel", "hidden/kernel")
BOTH = {"teacher": learner(), "student": learner()}
KEY = jax.random.key(3)
STILL = {"attention_dropout": 0.0, "output_dropout": 0.0}  # and half the time to compile
QUICK = STILL | {"layers": 1}


def start(config, pairs=(HEADS,), learners=BOTH, **options):
    transfers = (mn.Transfer("teacher", "student", pairs, config),)
    params = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}
    return (
        mn.init_state(learners, transfers, params, KEY, **options),
        mn.make_train_step(learners, transfers),
        transfers,
    )


def batches(step):
    return {"teacher": batch(step), "student": batch(step + 1000)}


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def by_hand(state, transfers, step, read=None):
    """One transfer step of one dense pair, spelled out; `read` holds what a placebo reads."""
    config = transfers[0].config
    models, adapter = state.models, state.adapters[0]
    target, source = (models[n].params["head"]["kernel"].T[None] for n in ("student", "teacher"))
    source = source if read is None else read
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, step), 0), 0)
    keys = jax.random.split(key, 1)

    @jax.jit
    def output(params):
        run = jax.vmap(lambda p, v, t, s, k: mn.apply_adapter(p, v, t, s, config, key=k))
        return run(params, adapter.vectors[0], target, source, keys)

    params, grads = {}, {}
    out, vectors = output(adapter.params[0])
    for name in models:
        old = dict(models[name].params)
        if name == "student":
            old["head"] = old["head"] | {"kernel": out[0].T}
        data = batches(step)[name]
        grads[name] = jax.grad(lambda p, data=data: loss(p, None, data, KEY)[0])(old)
        updates, _ = BOTH[name].optimizer.update(grads[name], models[name].opt_state, old)
        params[name] = optax.apply_updates(old, updates)
    return output, out, vectors, params, grads


def test_delta_rule_is_the_gradient_of_the_squared_distance():
    config = mn.MergeConfig.authors_code(cycle=2, layers=1)
    state, step, transfers = start(config)
    before = copy(state)
    output, out, vectors, params, _ = by_hand(before, transfers, 0)
    now = params["student"]["head"]["kernel"].T[None]

    def distance(p):
        return 0.5 * jnp.sum((output(p)[0] - now) ** 2)

    gradient = [jax.jit(jax.grad(distance))(before.adapters[0].params[0])]
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = adapter_optimizer(transfers[0]).update(
            gradient, before.adapters[0].opt_state, before.adapters[0].params
        )
    expected = optax.apply_updates(before.adapters[0].params, updates)
    state, metrics = step(state, batches(0))
    for name, found in params.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.models[name].params, found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.adapters[0].vectors[0], vectors)
    told = metrics["teacher->student"]
    assert told["gradient"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    assert told["moved"] == pytest.approx(float(jnp.linalg.norm(out - now) / jnp.linalg.norm(out)), rel=1e-3)
    assert told["transferred"] == told["finite"] == 1
    # Adam's first step has the size of the learning rate and the gradient's sign, whatever its size: compare where the
    # gradient is not rounding error.
    for a, b, g in zip(*map(jax.tree.leaves, (state.adapters[0].params, expected, gradient)), strict=True):
        sure = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.asarray(a)[sure], np.asarray(b)[sure], rtol=1e-4, atol=1e-5)


def test_exact_rule_is_the_gradient_of_the_targets_loss():
    """Compared with finite differences through the whole step, in a random direction."""
    config = mn.MergeConfig(rule="exact", rescale="frobenius", **QUICK)
    state, _, transfers = start(config)
    transfers = (dataclasses.replace(transfers[0], optimizer=optax.sgd(1.0)),)
    state = mn.init_state(BOTH, transfers, {name: m.params for name, m in state.models.items()}, KEY)
    step = mn.make_train_step(BOTH, transfers)
    before = copy(state)
    after, _ = step(state, batches(0))
    gradient = jax.tree.map(jnp.subtract, before.adapters[0].params, after.adapters[0].params)
    keys = iter(jax.random.split(jax.random.key(8), 100))
    toward = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), gradient)

    @jax.jit
    def losses(size):
        adapter = jax.tree.map(lambda x, d: x + size * d, before.adapters[0].params, toward)
        moved = dataclasses.replace(before, adapters=(dataclasses.replace(before.adapters[0], params=adapter),))
        return step(moved, batches(0))[1]["student"]["loss"]

    h = 1e-3
    slope = (losses(h) - losses(-h)) / (2 * h)
    found = sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(toward), strict=True))
    assert found == pytest.approx(float(slope), rel=2e-2)
    assert abs(found) > 1e-3


def test_rhythm_of_transfers():
    """Every second step transfers; between them the adapters rest; nothing compiles twice."""
    state, step, _ = start(mn.MergeConfig(cycle=2, **QUICK), states={"teacher": {"calls": jnp.zeros((), jnp.int32)}})
    for number in range(6):
        before = copy(state)
        state, metrics = step(state, batches(number))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before.adapters[0].params, state.adapters[0].params)
        assert float(metrics["teacher->student"]["transferred"]) == (number % 2 == 0)
        assert any(not x for x in jax.tree.leaves(same)) == (number % 2 == 0)
    assert step._cache_size() == 1
    assert state.step == 6
    assert state.models["teacher"].state["calls"] == 6 and state.models["student"].state is None


def test_without_transfer_models_learn_as_alone():
    """A cycle that is never due again, and the source at all times: plain training."""
    state, step, _ = start(mn.MergeConfig(cycle=50, **QUICK))
    alone = perceptron(0, 12)
    opt_state = BOTH["teacher"].optimizer.init(alone)
    for number in range(5):
        state, _ = step(state, batches(number))
        grads = jax.grad(lambda p, n=number: loss(p, None, batches(n)["teacher"], KEY)[0])(alone)
        updates, opt_state = BOTH["teacher"].optimizer.update(grads, opt_state, alone)
        alone = optax.apply_updates(alone, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.models["teacher"].params, alone)


def test_delta_k_learns_from_several_steps():
    """The lesson of a transfer at step 3 comes after step 5, from what was written at 3 and what it then became."""
    config = mn.MergeConfig(rule="delta_k", inner_steps=3, cycle=3, **QUICK)
    state, step, transfers = start(config)
    for number in range(3):
        state, _ = step(state, batches(number))
    at_transfer = copy(state)
    output, *_ = by_hand(at_transfer, transfers, 3)
    for number in range(3, 6):
        before = copy(state)
        state, metrics = step(state, batches(number))
        changed = any(
            bool((a != b).any())
            for a, b in zip(*(jax.tree.leaves(s.adapters[0].params) for s in (before, state)), strict=True)
        )
        assert changed == (number == 5)
    now = state.models["student"].params["head"]["kernel"].T[None]
    distance = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum((output(p)[0] - now) ** 2)))
    gradient = distance(at_transfer.adapters[0].params[0])
    assert metrics["teacher->student"]["gradient"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-3)


@pytest.mark.parametrize("mode", ["zero", "random"])
def test_placebo_sources(mode):
    """The adapter reads zeros, or noise of the source's scale that is the same at every step."""
    state, step, transfers = start(mn.MergeConfig(source=mode, cycle=1, **QUICK))
    real = state.models["teacher"].params["head"]["kernel"].T[None]
    _, read = mn.read(transfers[0], {name: m.params for name, m in state.models.items()}, state.key)
    if mode == "zero":
        assert not np.any(read[0])
    else:
        assert np.abs(read[0] - real).max() > 0.1
        assert float(jnp.std(read[0])) == pytest.approx(float(jnp.std(real)), rel=0.3)
    _, _, _, params, _ = by_hand(copy(state), transfers, 0, read[0])
    state, _ = step(state, batches(0))
    student = state.models["student"].params["head"]["kernel"]
    np.testing.assert_allclose(student, params["student"]["head"]["kernel"], **FP32)
    _, later = mn.read(transfers[0], {name: m.params for name, m in state.models.items()}, state.key)
    ratio = float(jnp.vdot(later[0], read[0]) / jnp.maximum(jnp.linalg.norm(later[0]) * jnp.linalg.norm(read[0]), 1e-9))
    assert mode == "zero" or ratio == pytest.approx(1, abs=1e-5)


def test_momentum_reset():
    def traces(mode):
        state, step, _ = start(mn.MergeConfig(cycle=1, momentum=mode, **QUICK))
        for number in range(2):
            state, _ = step(state, batches(number))
        return state, step

    def first_update(mode):
        """By how much the written kernel moved in step 2: with forgotten momentum it is that step's gradient alone."""
        state, step = traces(mode)
        state, _ = step(state, batches(2))
        return optax.tree.get(state.models["student"].opt_state, "trace")

    kept, reset = first_update("keep"), first_update("reset")
    data = batches(2)["student"]
    state, _ = traces("reset")
    (transfer,) = (mn.Transfer("teacher", "student", (HEADS,), mn.MergeConfig(cycle=1, momentum="reset", **QUICK)),)
    _, _, _, _, grads = by_hand(state, (transfer,), 2)
    student = grads["student"]["head"]["kernel"]
    assert data["x"].shape == (16, 8)
    assert np.abs(np.asarray(reset["head"]["kernel"]) - student).max() < 2e-3  # but for the weight decay's 5e-4 W
    assert np.abs(np.asarray(kept["head"]["kernel"]) - np.asarray(reset["head"]["kernel"])).max() > 1e-2
    assert np.abs(np.asarray(reset["hidden"]["kernel"])).max() > 0


def test_factors_from_the_singular_value_decomposition():
    transfers = (mn.Transfer("teacher", "student", (HEADS,), mn.MergeConfig(encoding="svd", rank=3)),)
    params = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}
    state = mn.init_state(BOTH, transfers, params, KEY)
    for name, tree in params.items():
        u, s, v = np.linalg.svd(tree["head"]["kernel"], full_matrices=False)
        best = (u[:, :3] * s[None, :3]) @ v[:3]
        np.testing.assert_allclose(mn.export(state, name)["head"]["kernel"], best, **FP32)
        np.testing.assert_array_equal(mn.export(state, name)["hidden"]["kernel"], tree["hidden"]["kernel"])


def test_factors_are_trained_in_the_kernels_place():
    state, step, _ = start(mn.MergeConfig.paper(rank=3, **QUICK))
    assert mn.leaf_names(state.models["student"].params) == mn.leaf_names(perceptron(1, 6))
    losses = []
    for number in range(40):
        state, metrics = step(state, batches(number % 4))
        losses.append(float(metrics["student"]["loss"]))
    student = mn.export(state, "student")
    assert jax.tree.map(jnp.shape, student) == jax.tree.map(jnp.shape, perceptron(1, 6))
    assert np.linalg.matrix_rank(np.asarray(student["head"]["kernel"]), tol=1e-4) == 3
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_equal_shapes_share_a_stack_and_keep_their_own_adapters():
    state, step, _ = start(mn.MergeConfig(cycle=1, **QUICK), (HEADS, mn.Pair("hidden/kernel", "hidden/kernel")))
    assert [jax.tree.leaves(p)[0].shape[0] for p in state.adapters[0].params] == [1, 1]
    square = {"a": {"k": jnp.eye(6)}, "b": {"k": 2 * jnp.eye(6), "l": 3 * jnp.eye(6)}}
    zero = mn.Learner(lambda p, s, b, k: (sum(x.sum() for x in jax.tree.leaves(p)), mn.LossOutput(s)), optax.sgd(0.1))
    transfers = (mn.Transfer("a", "b", (mn.Pair("k", "k"), mn.Pair("k", "l")), mn.MergeConfig(**QUICK)),)
    learners = {"a": None, "b": zero}
    state = mn.init_state(learners, transfers, square, KEY)
    assert [jax.tree.leaves(p)[0].shape[0] for p in state.adapters[0].params] == [2]
    state, _ = mn.make_train_step(learners, transfers)(state, {"b": None})
    written = state.models["b"].params
    assert np.abs(np.asarray(written["k"]) - np.asarray(written["l"])).max() > 0.1
    np.testing.assert_array_equal(state.models["a"].params["k"], np.eye(6))  # frozen


def test_both_directions_and_self_transfer_at_once():
    config = mn.MergeConfig(rescale="frobenius", **QUICK)
    transfers = (
        mn.Transfer("teacher", "student", (HEADS,), config),
        mn.Transfer("student", "teacher", (HEADS,), config),
        mn.Transfer("student", "student", (mn.Pair("head/kernel", "hidden/kernel"),), config),
    )
    state = mn.init_state(BOTH, transfers, {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}, KEY)
    step = mn.make_train_step(BOTH, transfers)
    losses = []
    for number in range(60):
        state, metrics = step(state, batches(number))
        losses.append(float(metrics["teacher"]["loss"]))
    assert {"teacher->student", "student->teacher", "student->student"} <= metrics.keys()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_transfer_with_nan_is_not_written():
    state, step, _ = start(mn.MergeConfig(cycle=1, **QUICK))
    broken = jax.tree.map(lambda x: x * jnp.nan, state.adapters[0].params)
    state = dataclasses.replace(state, adapters=(dataclasses.replace(state.adapters[0], params=broken),))
    alone = perceptron(1, 6)
    state, metrics = step(state, batches(0))
    assert metrics["teacher->student"]["transferred"] == 0
    assert metrics["teacher->student"]["finite"] == 0
    grads = jax.grad(lambda p: loss(p, None, batches(0)["student"], KEY)[0])(alone)
    updates, _ = BOTH["student"].optimizer.update(grads, BOTH["student"].optimizer.init(alone), alone)
    expected = optax.apply_updates(alone, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.models["student"].params, expected)
    with pytest.raises(ValueError, match="teacher->student: values are not finite"):
        mn.check_finite(metrics)


def test_convolution_kernels_keep_their_places():
    """A 3 x 3 kernel is read and written as [out, in * 9]: after a gated step of zero it is what it was."""
    params = {"a": {"k": jnp.arange(3 * 3 * 4 * 5.0).reshape(3, 3, 4, 5)}, "b": {"k": jnp.ones((6, 7))}}
    still = mn.Learner(lambda p, s, b, k: (0.0 * p["k"].sum(), mn.LossOutput(s)), optax.sgd(0.1))
    transfers = (mn.Transfer("b", "a", (mn.Pair("k", "k"),), mn.MergeConfig.plus(layers=1)),)
    state = mn.init_state({"a": still, "b": None}, transfers, params, KEY)
    expected = np.asarray(params["a"]["k"])
    targets, _ = mn.read(transfers[0], params, KEY)
    assert targets[0].shape == (1, 5, 36)
    np.testing.assert_array_equal(targets[0][0, 2], expected[:, :, :, 2].transpose(2, 0, 1).ravel())
    state, _ = mn.make_train_step({"a": still, "b": None}, transfers)(state, {"a": None})
    np.testing.assert_allclose(state.models["a"].params["k"], expected, rtol=1e-6)


def test_learns_the_task():
    state, step, _ = start(mn.MergeConfig.plus(cycle=1, layers=1), (HEADS, HIDDEN))
    for number in range(150):
        state, metrics = step(state, batches(number))
    data = batch(5000, 512)

    def accuracy(params):
        return (logits(params, data["x"]).argmax(1) == data["y"]).mean()

    assert accuracy(mn.export(state, "student")) > accuracy(perceptron(1, 6)) + 0.2

"""Steps of joint training against the same done by hand, rule by rule.

A program with an adapter takes seconds to compile, so tests share one where its options do not matter, and the others'
adapters have plain descent in place of AdamW, which is half of the program.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mergenet_jax as mn
from mergenet_jax.learner import updated
from mergenet_jax.state import adapter_optimizer
from mergenet_jax.transfer import write
from tests.mergenet_jax.learners import batch, learner, logits, perceptron, step_alone
from tests.tiers import quick_first
from tests.tolerances import FP32

HEADS = mn.Pair("head/kernel", "head/kernel")
HIDDEN = mn.Pair("hidden/kernel", "hidden/kernel")
BOTH = {"teacher": learner(), "student": learner()}
KEY = jax.random.key(3)
ONE = {"layers": 1}
STILL = ONE | {"attention_dropout": 0.0, "output_dropout": 0.0}
DROPPING = mn.MergeConfig.authors_code(**ONE)


def transfers_of(config, pairs=(HEADS,), optimizer=None):
    return (mn.Transfer("teacher", "student", pairs, config, optimizer),)


def first_state(transfers, widths=(12, 6)):
    """Before the first step; the teacher counts its steps, the student carries nothing on."""
    params = {"teacher": perceptron(0, widths[0]), "student": perceptron(1, widths[1])}
    calls = {"teacher": {"calls": jnp.zeros((), jnp.int32)}}
    return mn.init_state(BOTH, transfers, params, KEY, states=calls)


def batches(step):
    return {"teacher": batch(step), "student": batch(step + 1000)}


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), found, expected)


@pytest.fixture(scope="module")
def joint():
    """The transfers and the step of most tests: the authors' options, a transfer in every second step."""
    transfers = transfers_of(DROPPING)
    return transfers, mn.make_train_step(BOTH, transfers)


@pytest.fixture(scope="module")
def later():
    """The same where the adapter learns from three steps, and the optimiser forgets what it gathered."""
    config = mn.MergeConfig(rule="delta_k", inner_steps=3, cycle=3, momentum="reset", **ONE)
    transfers = transfers_of(config, optimizer=optax.sgd(0.1))
    return transfers, jax.jit(mn.train_step(BOTH, transfers))


@jax.jit
def adapted(params, vectors, target, source, key, now):
    """What the adapter writes, its vectors after that, and the gradient of half the squared distance to `now`."""

    def distance(params):
        out, after = mn.apply_adapter(params, vectors, target, source, DROPPING, key=key)
        return 0.5 * jnp.sum((out - now) ** 2), (out, after)

    gradient, (out, after) = jax.grad(distance, has_aux=True)(params)
    return out, after, gradient


def by_hand(state, step):
    """One transfer step of the pair of heads, spelled out.

    Returns:
        `adapted` but for `now`; what it writes; its vectors after that; and of each model what `step_alone` gives after
        the transfer.
    """
    target, source = (state.models[n].params["head"]["kernel"].T for n in ("student", "teacher"))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, step), 0), 0)
    (key,) = jax.random.split(key, 1)
    params, vectors = (
        jax.tree.map(lambda x: x[0], part[0]) for part in (state.adapters[0].params, state.adapters[0].vectors)
    )

    def output(now):
        return adapted(params, vectors, target, source, key, now)

    out, after, _ = output(target)
    found = {}
    for name, model in state.models.items():
        old = dict(model.params)
        if name == "student":
            old["head"] = old["head"] | {"kernel": out.T}
        found[name] = step_alone(old, model.opt_state, batches(step)[name])
    return output, out, after, found


def test_delta_rule_is_the_gradient_of_the_squared_distance(joint):
    transfers, step = joint
    state = first_state(transfers)
    before = copy(state)
    output, out, vectors, models = by_hand(before, 0)
    now = models["student"][0]["head"]["kernel"].T
    gradient = [jax.tree.map(lambda x: x[None], output(now)[2])]
    optimizer = adapter_optimizer(transfers[0])
    expected, _ = jax.jit(lambda *args: updated(optimizer, *args))(
        gradient, before.adapters[0].opt_state, before.adapters[0].params
    )
    state, metrics = step(state, batches(0))
    for name, found in models.items():
        assert_close(state.models[name].params, found[0])
    assert_close(jax.tree.map(lambda x: x[0], state.adapters[0].vectors[0]), vectors)
    told = metrics["teacher->student"]
    assert told["gradient"] == pytest.approx(
        np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient))), 1e-4
    )
    assert told["moved"] == pytest.approx(float(np.linalg.norm(out - now) / np.linalg.norm(out)), rel=1e-3)
    assert told["transferred"] == told["finite"] == 1
    # Adam's first step has the size of the learning rate and the gradient's sign, whatever its size: compare where the
    # gradient is not rounding error.
    for a, b, g in zip(*map(jax.tree.leaves, (state.adapters[0].params, expected, gradient)), strict=True):
        sure = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.asarray(a)[sure], np.asarray(b)[sure], rtol=1e-4, atol=1e-5)


def test_exact_rule_is_the_gradient_of_the_targets_loss():
    """Compared with finite differences through the whole step, in a random direction."""
    config = mn.MergeConfig(rule="exact", rescale="frobenius", **STILL)
    transfers = transfers_of(config, optimizer=optax.sgd(1.0))
    before, step = first_state(transfers), jax.jit(mn.train_step(BOTH, transfers))
    after, _ = step(before, batches(0))
    old, new = (jax.tree.map(np.asarray, state.adapters[0].params) for state in (before, after))
    gradient = jax.tree.map(np.subtract, old, new)
    random = np.random.default_rng(8)
    toward = jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), gradient)

    def loss(size):
        adapter = jax.tree.map(lambda x, d: jnp.asarray(x + np.float32(size) * d), old, toward)
        moved = dataclasses.replace(before, adapters=(dataclasses.replace(before.adapters[0], params=adapter),))
        return float(step(moved, batches(0))[1]["student"]["loss"])

    h = 1e-3
    slope = (loss(h) - loss(-h)) / (2 * h)
    found = sum(float(np.vdot(a, b)) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(toward), strict=True))
    assert found == pytest.approx(slope, rel=2e-2)
    assert abs(found) > 1e-3


def test_rhythm_of_transfers(joint):
    """Every second step transfers; between them the adapters rest, and the source learns as ever; one program."""
    transfers, step = joint
    state = first_state(transfers)
    alone, opt_state = copy((state.models["teacher"].params, state.models["teacher"].opt_state))
    for number in range(4):
        before = copy(state.adapters[0].params)
        state, metrics = step(state, batches(number))
        assert bool(metrics["teacher->student"]["transferred"]) == (number % 2 == 0)
        assert equal(before, state.adapters[0].params) == (number % 2 == 1)
        alone, opt_state, _ = step_alone(alone, opt_state, batches(number)["teacher"])
    assert_close(state.models["teacher"].params, alone)
    assert step._cache_size() == 1
    assert state.step == 4
    assert state.models["teacher"].state["calls"] == 4 and state.models["student"].state is None


@pytest.mark.complete
def test_delta_k_learns_from_several_steps(later):
    """The adapter update of a transfer at step 3 comes after step 5, from what was written and what it then became."""
    transfers, step = later
    state = first_state(transfers)
    for number in range(3):
        state, _ = step(state, batches(number))
    output, *_ = by_hand(state, 3)
    for number in range(3, 6):
        before = state.adapters[0].params
        state, metrics = step(state, batches(number))
        assert equal(before, state.adapters[0].params) == (number != 5)
    *_, gradient = output(state.models["student"].params["head"]["kernel"].T)
    size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
    assert metrics["teacher->student"]["gradient"] == pytest.approx(size, rel=1e-3)


@pytest.mark.parametrize(("program", "number"), quick_first([("joint", 2), ("later", 3)]), ids=["keep", "reset"])
def test_momentum_after_a_transfer(program, number, request):
    """With kept momentum the written kernel's next step is as without a transfer; else its gradient is all of it."""
    transfers, step = request.getfixturevalue(program)
    state = first_state(transfers)
    for earlier in range(number):
        state, _ = step(state, batches(earlier))
    *_, models = by_hand(state, number)
    _, after, gradient = models["student"]
    kept, own = (np.asarray(tree["head"]["kernel"]) for tree in (optax.tree.get(after, "trace"), gradient))
    state, _ = step(state, batches(number))
    trace = optax.tree.get(state.models["student"].opt_state, "trace")
    found = np.asarray(trace["head"]["kernel"])
    assert np.abs(kept - own).max() > 1e-2
    if program == "joint":
        np.testing.assert_allclose(found, kept, **FP32)
    else:
        assert np.abs(found - own).max() < 2e-3  # but for the weight decay's 5e-4 W
    assert np.abs(np.asarray(trace["hidden"]["kernel"])).max() > 0


@pytest.mark.parametrize("mode", ["zero", "random"])
def test_placebo_sources(mode):
    """The adapter reads zeros, or noise of the source's scale that is the same at every step."""
    (transfer,) = transfers_of(mn.MergeConfig(source=mode))
    params = {"teacher": perceptron(0, 12), "student": perceptron(1, 6)}
    real = np.asarray(params["teacher"]["head"]["kernel"]).T[None]
    later = params | {"teacher": jax.tree.map(lambda x: 2 * x, params["teacher"])}
    (_, (found,)), (_, (again,)) = (mn.read(transfer, each, KEY) for each in (params, later))
    if mode == "zero":
        assert not np.any(found) and not np.any(again)
    else:
        assert np.abs(found - real).max() > 0.1
        assert float(np.std(found)) == pytest.approx(float(np.std(real)), rel=0.3)
        np.testing.assert_allclose(again, 2 * found, **FP32)


@pytest.mark.complete
@pytest.mark.parametrize("mode", ["zero", "random"])
def test_a_step_reads_the_placebo(mode):
    transfers = transfers_of(mn.MergeConfig(source=mode, **STILL), optimizer=optax.sgd(0.1))
    state, step = first_state(transfers), jax.jit(mn.train_step(BOTH, transfers))
    params = {name: model.params for name, model in state.models.items()}
    _, (source,) = mn.read(transfers[0], params, state.key)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, 0), 0), 0)
    one = [jax.tree.map(lambda x: x[0], part[0]) for part in (state.adapters[0].params, state.adapters[0].vectors)]
    target = params["student"]["head"]["kernel"].T
    out, _ = jax.jit(lambda key: mn.apply_adapter(*one, target, source[0], transfers[0].config, key=key))(key)
    old = params["student"] | {"head": params["student"]["head"] | {"kernel": out.T}}
    expected, _, _ = step_alone(old, state.models["student"].opt_state, batches(0)["student"])
    state, _ = step(state, batches(0))
    assert_close(state.models["student"].params, expected)


def test_factors_from_the_singular_value_decomposition():
    transfers = transfers_of(mn.MergeConfig(encoding="svd", rank=4, **ONE))
    state = first_state(transfers, widths=(4, 4))
    for seed, name in enumerate(state.models):
        tree, found = perceptron(seed, 4), state.models[name].params["head"]["kernel"]
        u, s, v = np.linalg.svd(np.asarray(tree["head"]["kernel"]).T, full_matrices=False)
        for factor, size in ((found.b, u.T @ found.b), (found.a.T, v @ found.a.T)):
            np.testing.assert_allclose(np.abs(size), np.diag(np.sqrt(s)), atol=1e-5)
            assert factor.shape == (4, 4)
        assert_close(mn.export(state, name), tree)


def test_factors_are_trained_in_the_kernels_place():
    """Both factors of a 4 x 4 kernel of rank 4 are 4 x 4: equal shapes share a stack and keep their own adapters."""
    transfers = transfers_of(mn.MergeConfig.paper(rank=4, **STILL), optimizer=optax.sgd(0.1))
    state, step = first_state(transfers, widths=(4, 4)), jax.jit(mn.train_step(BOTH, transfers))
    assert mn.leaf_names(state.models["student"].params) == mn.leaf_names(perceptron(1, 4))
    assert [jax.tree.leaves(group)[0].shape[0] for group in state.adapters[0].params] == [2]
    losses = []
    for number in range(40):
        state, metrics = step(state, batches(number % 4))
        losses.append(float(metrics["student"]["loss"]))
        if number == 0:
            written = state.models["student"].params["head"]["kernel"]
            assert np.abs(np.asarray(written.b) - np.asarray(written.a)).max() > 0.1
    student = mn.export(state, "student")
    assert jax.tree.map(jnp.shape, student) == jax.tree.map(jnp.shape, perceptron(1, 4))
    kernel = state.models["student"].params["head"]["kernel"]
    np.testing.assert_allclose(student["head"]["kernel"], (np.asarray(kernel.b) @ np.asarray(kernel.a)).T, **FP32)
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


@pytest.mark.complete
def test_equal_shapes_share_a_stack_and_keep_their_own_adapters():
    square = {"a": {"k": jnp.eye(6)}, "b": {"k": 2 * jnp.eye(6), "l": 3 * jnp.eye(6)}}
    still = mn.Learner(lambda p, s, b, k: (sum(x.sum() for x in jax.tree.leaves(p)), mn.LossOutput(s)), optax.sgd(0.1))
    pairs = (mn.Pair("k", "k"), mn.Pair("k", "l"))
    transfers = (mn.Transfer("a", "b", pairs, mn.MergeConfig(**STILL), optax.sgd(0.1)),)
    learners = {"a": None, "b": still}
    state = mn.init_state(learners, transfers, square, KEY)
    assert [jax.tree.leaves(p)[0].shape[0] for p in state.adapters[0].params] == [2]
    state, _ = mn.make_train_step(learners, transfers)(state, {"b": None})
    written = state.models["b"].params
    assert np.abs(np.asarray(written["k"]) - np.asarray(written["l"])).max() > 0.1
    np.testing.assert_array_equal(state.models["a"].params["k"], np.eye(6))  # frozen


@pytest.mark.complete
def test_both_directions_and_self_transfer_at_once():
    config = mn.MergeConfig(rescale="frobenius", **STILL)
    transfers = (
        mn.Transfer("teacher", "student", (HEADS,), config),
        mn.Transfer("student", "teacher", (HEADS,), config),
        mn.Transfer("student", "student", (mn.Pair("head/kernel", "hidden/kernel"),), config),
    )
    state, step = first_state(transfers), mn.make_train_step(BOTH, transfers)
    losses = []
    for number in range(60):
        state, metrics = step(state, batches(number))
        losses.append(float(metrics["teacher"]["loss"]))
    assert {"teacher->student", "student->teacher", "student->student"} <= metrics.keys()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_a_transfer_with_nan_is_not_written(joint):
    transfers, step = joint
    state = first_state(transfers)
    broken = jax.tree.map(lambda x: jnp.asarray(np.full(x.shape, np.nan, x.dtype)), state.adapters[0].params)
    state = dataclasses.replace(state, adapters=(dataclasses.replace(state.adapters[0], params=broken),))
    student = copy(state.models["student"])
    expected, _, _ = step_alone(student.params, student.opt_state, batches(0)["student"])
    state, metrics = step(state, batches(0))
    assert metrics["teacher->student"]["transferred"] == 0
    assert metrics["teacher->student"]["finite"] == 0
    assert_close(state.models["student"].params, expected)
    with pytest.raises(ValueError, match="teacher->student: values are not finite"):
        mn.check_finite(metrics)


def test_convolution_kernels_keep_their_places():
    """A 3 x 3 kernel is read and written as [out, in * 9]."""
    params = {"a": {"k": np.arange(3 * 3 * 4 * 5.0).reshape(3, 3, 4, 5)}, "b": {"k": np.ones((6, 7))}}
    transfer = mn.Transfer("b", "a", (mn.Pair("k", "k"),))
    targets, _ = mn.read(transfer, params, KEY)
    assert targets[0].shape == (1, 5, 36)
    np.testing.assert_array_equal(targets[0][0, 2], params["a"]["k"][:, :, :, 2].transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(write(transfer, params, targets)["k"], params["a"]["k"])


@pytest.mark.complete
def test_learns_the_task():
    transfers = transfers_of(mn.MergeConfig.plus(cycle=1, layers=1), (HEADS, HIDDEN))
    state, step = first_state(transfers), mn.make_train_step(BOTH, transfers)
    assert [jax.tree.leaves(p)[0].shape[0] for p in state.adapters[0].params] == [1, 1]
    for number in range(150):
        state, _ = step(state, batches(number))
    data = batch(5000, 512)

    def accuracy(params):
        return (logits(params, data["x"]).argmax(1) == data["y"]).mean()

    assert accuracy(mn.export(state, "student")) > accuracy(perceptron(1, 6)) + 0.2

"""Every arm takes steps; arms that must not differ in something do not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mergenet_jax import MergeConfig, Pair
from mergenet_jax.selection import select
from models.errors import UserError
from tests.train.mergenet import tiny
from train.mergenet.arms import ARMS, SOURCE, TARGET, set_up
from train.mergenet.augment import STATISTICS, augment
from train.mergenet.config import read_recipe, recipe_names
from train.mergenet.data import load_pictures
from train.mergenet.distillation import cross_entropy
from train.mergenet.program import DATA, Program, begin, make_program

STEPS = 2
COMPLETE = [pytest.param(arm, marks=pytest.mark.complete) for arm in ("kd", "zero", "plus_frozen", "direct", "rkd")]
RUN = ["mergenet", *COMPLETE]
"""Arms that are compiled; the others differ from these in a constant or two, and are traced."""


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    tiny.register()
    yield
    tiny.unregister()


def pictures() -> tuple[jax.Array, jax.Array]:
    part = load_pictures("cifar10", "train")
    return jnp.asarray(part.images[:16]), jnp.asarray(part.labels[:16], jnp.int32)


def made(given: Any = None, seeds: int = 1, **changes: Any) -> Program:
    recipe = tiny.recipe(**changes).directed()
    return make_program(recipe, set_up(recipe, STEPS, given), STEPS, seeds)


def steps(seeds: Any = (0,), given: Any = None, **changes: Any) -> tuple[Any, Any, list[Any]]:
    """A program, its state after two steps, and what the steps told."""
    program = made(given, len(seeds), **changes)
    state, told = begin(program.setup, seeds, compiled=False), []  # whose small programs the arms share
    for step in range(STEPS):
        rows = jnp.arange(8, dtype=jnp.int32) + 8 * step
        if len(seeds) > 1:
            rows = jnp.tile(rows, (len(seeds), 1))
        named = jnp.asarray(seeds if len(seeds) > 1 else seeds[0], jnp.int32)
        state, metrics = program.step(state, *pictures(), rows, named)
        told.append(jax.device_get(metrics))
    return program, state, told


def traced(program: Program) -> tuple[Any, Any]:
    """Shapes of the state and of what a step tells."""
    setup = program.setup
    state = jax.eval_shape(lambda seed: setup.start(seed, setup.given), 0)
    rows = jax.ShapeDtypeStruct((8,), jnp.int32)
    after, told = jax.eval_shape(program.step, state, *pictures(), rows, jnp.int32(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    return after, told


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any, list[Any]]:
    """The target by itself."""
    return steps(arm="none")


@pytest.fixture(scope="module")
def merged() -> tuple[Any, Any, list[Any]]:
    """MergeNet, of another seed."""
    return steps((5,), arm="mergenet")


@pytest.fixture(scope="module")
def given() -> Any:
    """A source to be frozen."""
    return tiny.recipe().source.make(10).init(jax.random.key(77))


def kernel(program: Any, state: Any) -> np.ndarray:
    return np.asarray(program.weights(state)[TARGET][0]["blocks"][1]["project"]["conv"]["kernel"])


def frozen_of(arm: str, given: Any) -> Any:
    return jax.tree.map(np.array, given) if ARMS[arm].source == "frozen" else None  # steps donate what they are given


def trained_by(arm: str) -> set[str]:
    return {TARGET, SOURCE} if ARMS[arm].source == "used" else {TARGET}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_set_up(arm: str, given: Any) -> None:
    setup = made(frozen_of(arm, given), arm=arm).setup
    assert len(setup.transfers) == ARMS[arm].transfers and set(setup.trained) == trained_by(arm)


@pytest.mark.parametrize(
    "arm",
    [
        name if name in ("self", "plus_frozen", "rkd") else pytest.param(name, marks=pytest.mark.complete)
        for name in ARMS
        if name not in ("none", "mergenet", "kd")
    ],
)
def test_an_arm_is_traced(arm: str, given: Any) -> None:
    program = made(frozen_of(arm, given), arm=arm)
    assert {name for name in traced(program)[1] if "->" not in name} == trained_by(arm)


@pytest.mark.parametrize("arm", RUN)
def test_an_arm_takes_steps(arm: str, alone: Any, merged: Any, given: Any) -> None:
    kind, frozen = ARMS[arm], frozen_of(arm, given)
    program, state, told = merged if arm == "mergenet" else steps(arm=arm, given=frozen)
    assert set(program.weights(state)) == trained_by(arm)
    for metrics in told:
        assert all(np.isfinite(value) for values in metrics.values() for value in values.values())
        assert {name for name in metrics if "->" not in name} == trained_by(arm)
        transfers = [values for name, values in metrics.items() if "->" in name]
        assert len(transfers) == kind.transfers
        assert all(values["transferred"] == 1 and values["gradient"] > 0 for values in transfers)
    assert np.abs(kernel(program, state) - kernel(*alone[:2])).max() > 1e-6
    if frozen is not None:
        jax.tree.map(np.testing.assert_array_equal, state.models[SOURCE].params, given[0])
    if kind.plus:  # it starts at zero: the same target sees the same pictures as by itself
        assert told[0][TARGET]["loss"] == pytest.approx(float(alone[2][0][TARGET]["loss"]), rel=1e-5)


def test_first_step_by_hand(alone: Any) -> None:
    recipe = tiny.recipe(arm="none")
    setup = set_up(recipe, STEPS)
    state = setup.start(0, None)
    images, labels = pictures()

    @jax.jit
    def loss(weights: Any) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(DATA), 0), 0)
        seen = augment(images[:8], key, STATISTICS["cifar10"], recipe.augmentation)
        outputs, _ = recipe.target.make(10).apply(*weights, seen, train=True)
        return cross_entropy(outputs.logits, labels[:8])

    expected = float(loss(setup.weights(state)[TARGET]))
    assert float(alone[2][0][TARGET]["loss"]) == pytest.approx(expected, rel=1e-4)


def test_direct_sharing_copies_the_common_rows_and_columns() -> None:
    recipe = tiny.recipe(arm="direct")
    setup = set_up(recipe, STEPS)
    before = setup.start(0, None)
    theirs = np.asarray(before.models[SOURCE].params["classifier"]["kernel"]).T  # [10, 6]
    ours = np.asarray(before.models[TARGET].params["blocks"][1]["project"]["conv"]["kernel"])[0, 0].T
    after = np.asarray(setup.share(before).models[TARGET].params["blocks"][1]["project"]["conv"]["kernel"])[0, 0].T
    assert theirs.shape == (10, 6) and ours.shape[0] == 8 and ours.shape[1] > 6
    np.testing.assert_array_equal(after[:, :6], theirs[:8])
    np.testing.assert_array_equal(after[:, 6:], ours[:, 6:])


@pytest.mark.parametrize("arm", ["start", "plus_frozen", "plus_zero", "plus"])
def test_what_begins_as_the_source(arm: str, given: Any) -> None:
    head = (Pair("classifier/kernel", "classifier/kernel"),)
    recipe = tiny.recipe(arm=arm, plus=MergeConfig.plus(layers=1, init_from_source=True), init_pairs=head)
    known = given if arm in ("start", "plus_frozen") else None
    found, own = (
        set_up(r, STEPS, g).start(0, g).models[TARGET].params
        for r, g in ((recipe, known), (tiny.recipe(arm="none"), None))
    )
    kernel, theirs = (np.asarray(of["classifier"]["kernel"]) for of in (own, given[0]))
    expected = select(kernel, theirs, "in_out", "in_out") if known else kernel
    np.testing.assert_allclose(found["classifier"]["kernel"], expected, rtol=1e-5)
    assert known is None or np.abs(np.asarray(expected) - kernel).max() > 0.01
    rest = jax.tree.map(np.array_equal, found | {"classifier": 0}, own | {"classifier": 0})
    assert all(jax.tree.leaves(rest))


def test_both_ways_and_back() -> None:
    _, told = traced(made(direction="both", arm="mergenet"))
    assert {"source->target", "target->source", SOURCE, TARGET} == set(told)
    assert made(direction="backward", arm="none").setup.trained[TARGET] == tiny.recipe().source.make(10)


@pytest.mark.complete
@pytest.mark.parametrize(("arm", "seeds", "place"), [("none", (0, 5), 0), ("mergenet", (0, 5), 1)])
def test_seeds_at_once_are_seeds_by_themselves(arm: str, seeds: Any, place: int, alone: Any, merged: Any) -> None:
    both, state, told = steps(seeds, arm=arm)
    one, own, single = alone if arm == "none" else merged
    for together, by_itself in zip(told, single, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[place], b, rtol=2e-4, atol=2e-4), together, by_itself)
    assert state.step.shape == ()
    np.testing.assert_allclose(kernel(both, state)[place], kernel(one, own), rtol=1e-3, atol=1e-4)


def test_a_frozen_teacher_is_distilled(given: Any) -> None:
    program = made(given, arm="kd")
    after, told = traced(program)
    assert set(told) == {TARGET} == set(program.setup.trained)
    assert jax.tree.map(np.shape, after.models["models"].state[SOURCE]) == jax.tree.map(np.shape, given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "magic"}, "no arm 'magic'; take one of none, mergenet, zero"),
        ({"arm": "frozen"}, "needs a trained source; give one with --source-checkpoint"),
        ({"arm": "self", "self_pairs": ()}, "names no pairs of the target's own kernels"),
        ({"arm": "kd", "direction": "both"}, "goes one way only"),
    ],
)
def test_what_cannot_be(changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        set_up(tiny.recipe(**changes), STEPS)


@pytest.mark.parametrize("smoke", [True, pytest.param(False, marks=pytest.mark.complete)], ids=["smoke", "whole"])
def test_all_recipes_can_be_set_up(smoke: bool) -> None:
    for name in recipe_names():
        recipe = read_recipe(name).smoke_version() if smoke else read_recipe(name)
        if ARMS[recipe.arm].source != "frozen":
            jax.eval_shape(lambda seed, recipe=recipe: set_up(recipe, 8).start(seed, None), 0)

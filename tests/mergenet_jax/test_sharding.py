"""Joint training on 1, 2 and 8 devices and on two halves of them; the adapter's work is divided over them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mergenet_jax as mn
from tests.mergenet_jax import sharded
from tests.mergenet_jax.sharded import STEPS, TRANSFERS, alone, batches, first_state, mesh_of, train
from tests.tolerances import FP32

COMPLETE = pytest.mark.complete
MESHES = [
    pytest.param({"data": 2}, AxisType.Auto, marks=COMPLETE),
    pytest.param({"data": 8}, AxisType.Auto, marks=COMPLETE),
    pytest.param({"fsdp": 8}, AxisType.Auto, marks=COMPLETE),
    pytest.param({"tensor": 8}, AxisType.Auto, marks=COMPLETE),
    pytest.param({"data": 2, "fsdp": 4}, AxisType.Auto, marks=COMPLETE),
    ({"data": 2, "fsdp": 2, "tensor": 2}, AxisType.Explicit),
]


@pytest.mark.parametrize(("axes", "kind"), MESHES, ids=str)
def test_devices_do_not_matter(axes, kind, monkeypatch):
    """Losses, parameters and adapters after four steps, two of them transfers with dropout, within 1e-5."""
    expected, metrics = alone()
    traces = []
    loss = sharded.LEARNERS["student"].loss
    counted = mn.Learner(lambda *args: (traces.append(1), loss(*args))[1], sharded.LEARNERS["student"].optimizer)
    monkeypatch.setitem(sharded.LEARNERS, "student", counted)
    mesh = mesh_of(axes, kind)
    state, told, _ = train(mesh)
    assert len(traces) == 1
    assert [t["teacher->student"]["transferred"] for t in told] == [1, 0, 1, 0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), told, metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.models, expected.models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.adapters, expected.adapters)
    shardings = mn.state_shardings(mesh, state)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}"), state, shardings)
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state.adapters[0].params))
    assert held * mesh.size == sum(x.size for x in jax.tree.leaves(state.adapters[0].params))


def test_axes_that_do_not_divide_one_dimension_divide_another():
    state = jax.eval_shape(
        lambda: mn.init_state(
            {"a": None, "b": sharded.LEARNERS["student"]},
            (mn.Transfer("a", "b", (mn.Pair("w", "w"),), mn.MergeConfig(heads=2)),),
            {"a": {"w": jnp.ones((32, 48))}, "b": {"w": jnp.ones((24, 12))}},
            jax.random.key(0),
        )
    )
    shardings = mn.state_shardings(mesh_of({"fsdp": 3, "tensor": 2}), state)
    kernel = shardings.adapters[0].params[0]["layers"]["x_x"]["q"]["kernel"]  # [units, layers, 24, 128]
    assert kernel.spec == PartitionSpec(None, None, ("fsdp",), ("tensor",))


def flops(axes: dict[str, int], heads: int, target: tuple[int, int] = (64, 160)) -> float:
    """Operations per device of an adapter and its gradient, as the compiler counts them."""
    config = mn.MergeConfig(layers=1, heads=heads, attention_dropout=0.0, output_dropout=0.0)
    mesh = mesh_of(axes)
    shapes = jax.eval_shape(lambda: mn.init_adapter(jax.random.key(0), target, (40, 96), config))

    def run(params, vectors, old, source):
        def squares(params):
            out, _ = mn.apply_adapter(params, vectors, old, source, config)
            return (out * old).sum()

        return jax.grad(squares)(params)

    matrices = (jax.ShapeDtypeStruct(target, jnp.float32), jax.ShapeDtypeStruct((40, 96), jnp.float32))
    with jax.set_mesh(mesh):
        cost = jax.jit(run).lower(*shapes, *matrices).compile().cost_analysis()
    assert cost is not None
    return cost["flops"]


@pytest.mark.parametrize(
    ("axes", "heads"),
    [
        pytest.param({"data": 8}, 8, marks=COMPLETE),
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
        pytest.param({"data": 8}, 3, marks=COMPLETE),
    ],
    ids=["heads", "heads over three axes", "rows where heads cannot be divided"],
)
def test_work_of_the_adapter_is_divided(axes, heads):
    """Forward and backward, projections, attention and feed-forward layer together: almost an eighth per device."""
    share = flops(axes, heads) / flops({"data": 1}, heads)
    assert share < (1 / 7 if heads == 8 else 1 / 4)


HALVES = {"source": "teacher", "target": "student"}


def meshes_of_halves():
    devices = jax.devices()
    return mesh_of({"data": 4}, devices=devices[:4]), mesh_of({"data": 2, "fsdp": 2}, devices=devices[4:])


@pytest.mark.complete
def test_two_halves_equal_one_device():
    """Losses, parameters and adapters of four steps within 1e-5; only what is read crosses."""
    expected, told = alone()
    source, target = meshes_of_halves()
    halves = mn.split_state(first_state(), TRANSFERS, source, target)
    assert jax.tree.map(jnp.shape, halves.target.models["teacher"].params) == {"hidden/kernel": (8, 24)}
    step = mn.make_split_step(sharded.LEARNERS, TRANSFERS, halves)
    rows = {
        "teacher": NamedSharding(source, PartitionSpec("data")),
        "student": NamedSharding(target, PartitionSpec(("data", "fsdp"))),
    }
    for number in range(STEPS):
        data = batches(number)
        halves, metrics = step(halves, {name: jax.device_put(data[name], rows[name]) for name in data})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), metrics, told[number])
    for half, name in HALVES.items():
        found = getattr(halves, half).models[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), found, expected.models[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), halves.target.adapters, expected.adapters)
    for half, mesh in zip(halves, (source, target), strict=True):
        assert all(x.sharding.device_set == set(mesh.devices.flat) for x in jax.tree.leaves(half))


def test_states_that_cannot_be_split():
    source, target = meshes_of_halves()
    with pytest.raises(ValueError, match="both meshes have .*; give each its own devices"):
        mn.split_state(first_state(), TRANSFERS, source, source)
    back = mn.Transfer("student", "teacher", TRANSFERS[0].pairs, TRANSFERS[0].config)
    with pytest.raises(ValueError, match=r"both read and written \(student, teacher\)"):
        mn.split_state(first_state(), (*TRANSFERS, back), source, target)

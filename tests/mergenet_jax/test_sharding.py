"""Joint training on 1, 2 and 8 devices, and that the adapter's work is divided over them."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import mergenet_jax as mn
from tests.mergenet_jax import sharded
from tests.mergenet_jax.sharded import mesh_of, train
from tests.tolerances import FP32

MESHES = [
    ({"data": 2}, AxisType.Auto),
    ({"data": 8}, AxisType.Auto),
    ({"fsdp": 8}, AxisType.Auto),
    ({"tensor": 8}, AxisType.Auto),
    ({"data": 2, "fsdp": 4}, AxisType.Auto),
    ({"data": 2, "tensor": 4}, AxisType.Explicit),
]


@functools.cache
def alone() -> tuple[Any, Any]:
    state, told, _ = train(mesh_of({"data": 1}))
    return jax.tree.map(np.asarray, (state.models, state.adapters)), told


@pytest.mark.parametrize(("axes", "kind"), MESHES, ids=str)
def test_devices_do_not_matter(axes, kind, monkeypatch):
    """Losses, parameters and adapters after four steps, two of them transfers with dropout, within 1e-5."""
    (models, adapters), expected = alone()
    traces = []
    loss = sharded.LEARNERS["student"].loss
    counted = mn.Learner(lambda *args: (traces.append(1), loss(*args))[1], sharded.LEARNERS["student"].optimizer)
    monkeypatch.setitem(sharded.LEARNERS, "student", counted)
    mesh = mesh_of(axes, kind)
    state, told, _ = train(mesh)
    assert len(traces) == 1
    assert [t["teacher->student"]["transferred"] for t in told] == [1, 0, 1, 0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), told, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.models, models)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), state.adapters, adapters)
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
    assert kernel.spec == jax.sharding.PartitionSpec(None, None, ("fsdp",), ("tensor",))


def flops(axes: dict[str, int], heads: int, target: tuple[int, int]) -> float:
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
    ("axes", "heads", "target"),
    [({"data": 8}, 8, (64, 160)), ({"data": 2, "fsdp": 2, "tensor": 2}, 8, (64, 160)), ({"data": 8}, 3, (64, 160))],
    ids=["heads", "heads over three axes", "rows where heads cannot be divided"],
)
def test_work_of_the_adapter_is_divided(axes, heads, target):
    """Forward and backward, projections, attention and feed-forward layer together: almost an eighth per device."""
    share = flops(axes, heads, target) / flops({"data": 1}, heads, target)
    assert share < (1 / 7 if heads == 8 else 1 / 4)

"""Joint training on meshes: the same four steps wherever they run."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import mergenet_jax as mn
from tests.mergenet_jax.learners import batch, learner, loss, perceptron

STEPS = 4


def noisy(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, mn.LossOutput]:
    """A loss that depends on its random key."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    return loss(params, state, batch | {"x": x}, key)


LEARNERS = {name: mn.Learner(noisy, learner().optimizer) for name in ("teacher", "student")}
CONFIG = mn.MergeConfig(cycle=2, layers=1, attention_dropout=0.1, output_dropout=0.0, rescale="frobenius")
PAIRS = (mn.Pair("hidden/kernel", "hidden/kernel"),)
# Plain descent: Adam makes steps of full size from gradients that are nothing but rounding error.
TRANSFERS = (mn.Transfer("teacher", "student", PAIRS, CONFIG, optax.sgd(0.1)),)


@functools.cache
def alone() -> tuple[mn.MergeState, list[dict[str, Any]]]:
    """What one device makes: the last state, in the host's memory, and the metrics of every step."""
    state, told, _ = train(mesh_of({"data": 1}))
    models, adapters = jax.tree.map(np.asarray, (state.models, state.adapters))
    return dataclasses.replace(state, models=models, adapters=adapters), told


def mesh_of(axes: dict[str, int], kind: AxisType = AxisType.Auto, devices: Any = None) -> Mesh:
    """A mesh of the first devices, all axes of one kind."""
    size = int(np.prod(list(axes.values())))
    kinds = (kind,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds, devices=(devices or jax.devices())[:size])


def first_state() -> mn.MergeState:
    """The state before the first step, on one device."""
    return mn.init_state(
        LEARNERS, TRANSFERS, {"teacher": perceptron(0, 24), "student": perceptron(1, 16)}, jax.random.key(3)
    )


def batches(step: int) -> dict[str, Any]:
    """Of both models, in the host's memory."""
    return jax.tree.map(np.asarray, {"teacher": batch(step), "student": batch(step + 1000)})


def placed(tree: Any, shardings: Any) -> Any:
    """Arrays put where they belong; every process holds all of them."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def train(mesh: Mesh) -> tuple[mn.MergeState, list[dict[str, Any]], Any]:
    """Some steps on a mesh: the last state, the metrics of every step, and the step."""
    state = first_state()
    shardings = mn.state_shardings(mesh, state)
    step = mn.make_train_step(LEARNERS, TRANSFERS, shardings=shardings)
    state = placed(state, shardings)
    rows = NamedSharding(mesh, PartitionSpec(tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)))
    told = []
    for number in range(STEPS):
        data = batches(number)
        state, metrics = step(state, placed(data, jax.tree.map(lambda _: rows, data)))
        told.append(jax.tree.map(float, metrics))
    return state, told, step

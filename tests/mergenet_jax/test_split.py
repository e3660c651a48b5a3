"""Source and target on two halves of the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mergenet_jax as mn
from mergenet_jax.split import make_split_step, split_state
from tests.mergenet_jax.learners import learner, loss
from tests.mergenet_jax.sharded import STEPS, TRANSFERS, batches, first_state, mesh_of
from tests.tolerances import FP32

OWN = {"source": "teacher", "target": "student"}


def meshes():
    devices = jax.devices()
    return mesh_of({"data": 4}, devices=devices[:4]), mesh_of({"data": 2, "fsdp": 2}, devices=devices[4:])


def noisy(params, state, batch, key):
    """A loss that depends on its random key."""
    x = batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape)
    return loss(params, state, batch | {"x": x}, key)


def test_two_halves_equal_one_device():
    """Losses, parameters and adapters of four steps within 1e-5; only what is read crosses."""
    learners = {name: mn.Learner(noisy, learner().optimizer) for name in OWN.values()}
    source, target = meshes()
    halves = split_state(first_state(), TRANSFERS, source, target)
    assert jax.tree.map(jnp.shape, halves.target.models["teacher"].params) == {"hidden/kernel": (8, 24)}
    step = make_split_step(learners, TRANSFERS, halves)
    state, joint = first_state(), mn.make_train_step(learners, TRANSFERS)
    rows = {
        "teacher": NamedSharding(source, PartitionSpec("data")),
        "student": NamedSharding(target, PartitionSpec(("data", "fsdp"))),
    }
    for number in range(STEPS):
        data = batches(number)
        state, expected = joint(state, data)
        halves, metrics = step(halves, {name: jax.device_put(data[name], rows[name]) for name in data})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), metrics, expected)
    for half, name in OWN.items():
        found = getattr(halves, half).models[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), found, state.models[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), halves.target.adapters, state.adapters)
    for half, mesh in zip(halves, (source, target), strict=True):
        assert all(x.sharding.device_set == set(mesh.devices.flat) for x in jax.tree.leaves(half))


def test_mistakes():
    source, target = meshes()
    with pytest.raises(ValueError, match="both meshes have .*; give each its own devices"):
        split_state(first_state(), TRANSFERS, source, source)
    back = mn.Transfer("student", "teacher", TRANSFERS[0].pairs, TRANSFERS[0].config)
    with pytest.raises(ValueError, match=r"both read and written \(student, teacher\)"):
        split_state(first_state(), (*TRANSFERS, back), source, target)

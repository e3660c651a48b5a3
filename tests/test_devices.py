"""What conftest.py promises to every other test."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from acckv_jax.sharding import mesh_spec, out_spec


def test_eight_cpu_devices():
    assert [d.platform for d in jax.devices()] == ["cpu"] * 8


def test_promotion_is_strict():
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(2, jnp.float32) + jnp.ones(2, jnp.int32)
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 2)) + jnp.ones(2)


def test_meshes(any_mesh):
    current = jax.sharding.get_abstract_mesh()
    if any_mesh is None:
        assert current.empty and out_spec("data") is None and mesh_spec("data") == PartitionSpec(None)
        return
    assert current == any_mesh.abstract_mesh and dict(current.shape) == {"data": 2, "tensor": 4}
    explicit = set(any_mesh.axis_types) == {AxisType.Explicit}
    assert out_spec("data") == (PartitionSpec("data") if explicit else None)
    assert mesh_spec("data", ("tensor", "fsdp")) == PartitionSpec("data", "tensor")

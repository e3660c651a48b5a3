import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jax.sharding import AxisType

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=["explicit", "auto"])
def mesh(request):
    """A data=2, tensor=4 mesh of either kind, set for the test."""
    kind = AxisType.Explicit if request.param == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        yield mesh

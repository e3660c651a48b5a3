"""Eight CPU devices, strict promotion of dtypes and ranks, and meshes."""

import os
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"  # in the environment, so that processes started by tests stay on the CPU too

import jax
import pytest
from jax.sharding import AxisType, Mesh

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs() -> Iterator[None]:
    """Drops a module's compiled programs at its end: each maps memory, and the system limits the maps of a process.

    A setting that changes what is compiled must not outlast the module, either.
    """
    yield
    jax.clear_caches()
    assert not jax.config.values["jax_disable_most_optimizations"], "this module leaves it to the next one"


@pytest.fixture(params=["explicit", "auto", "none"])
def any_mesh(request: pytest.FixtureRequest) -> Iterator[Mesh | None]:
    """A data=2, tensor=4 mesh of either kind, set for the test, and no mesh at all (None)."""
    if request.param == "none":
        yield None
        return
    axis_type = {"explicit": AxisType.Explicit, "auto": AxisType.Auto}[request.param]
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(axis_type, axis_type))
    with jax.set_mesh(mesh):
        yield mesh

"""Eight CPU devices, strict promotion of dtypes and ranks, a cache of compiled programs, and meshes."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# In the environment, so that it holds for processes started by tests too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the Hugging Face hub
# Where XLA prefers not to use some instructions, it logs this as an error for every program that comes from the cache.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Most programs run once, over tiny arrays, and compiling them as users do takes three times as long.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# Threads of XLA's pools. With its eight for eight devices, a program with several collectives under way at once waits
# for ever on a busy machine: each of the eight is in one of them.
os.environ.setdefault("NPROC", "64")
# What waits longer than this is such a deadlock, and not a slow machine.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_collective_call_terminate_timeout_seconds=300"

import jax
import pytest
from jax.sharding import AxisType, Mesh

from tests import programs

MOST_MAPS = 20_000  # of the 65,530 that Linux allows
MOST_BYTES = 3 << 30

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
programs.keep()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--count-programs", action="store_true", help="tell how many programs were compiled, and where")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        programs.forget_unused()
    if config.getoption("--count-programs"):
        config.pluginmanager.register(programs.Counter(config))


def pytest_collection_finish() -> None:
    """Lets the garbage collector leave out what is imported, and look less often: tracing makes much that stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs() -> Iterator[None]:
    """Drops compiled programs when there are many: each takes memory, and maps, of which a process may have few."""
    yield
    maps, pages = Path("/proc/self/maps"), Path("/proc/self/statm")
    if (
        not maps.exists()
        or len(maps.read_text().splitlines()) > MOST_MAPS
        or int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MOST_BYTES
    ):
        jax.clear_caches()


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

"""Compiled programs: where the tests keep them for later runs, and how many there are (pytest --count-programs)."""

import collections
import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from models.hub.package_index import cache_root

KEPT_DAYS = 30
SLOWEST = 15
EVENTS = {
    "/jax/core/compile/backend_compile_duration": "compile",  # also around a search of the cache that finds it
    "/jax/compilation_cache/cache_retrieval_time_sec": "found",
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
}


def kept_in() -> Path:
    """The folder of this jax and this processor: machine code for another one may not run here."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    about = sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))})
    digest = hashlib.sha256("\n".join(about or lines).encode()).hexdigest()
    return cache_root() / "tests" / f"jax-{jax.__version__}-{platform.machine()}-{digest[:8]}"


def keep() -> None:
    """Keeps all programs of this process and those that it starts; $JAX_COMPILATION_CACHE_DIR names another folder."""
    settings = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(kept_in()),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def forget_unused() -> None:
    """Deletes the programs that no run has read for a month; not those in a folder of the user's choice."""
    for program in kept_in().glob("*-cache"):
        if program.stat().st_atime < time.time() - KEPT_DAYS * 86400:
            program.unlink(missing_ok=True)


@contextlib.contextmanager
def new_programs() -> Iterator[list[str]]:
    """Names of the programs that are compiled inside, or found on disk: all that this process had not run before."""
    found, listening = [], True

    def add(event: str, duration_secs: float, **details: Any) -> None:
        if listening and EVENTS.get(event) == "compile":
            found.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(add)
    yield found
    listening = False


class Counter:
    """A pytest plugin that adds up programs and seconds by file, over the workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.file = "collection"
        self.times: collections.Counter[tuple[str, str]] = collections.Counter()  # by file and event
        self.seconds: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
        jax.monitoring.register_event_duration_secs_listener(self.add)

    def add(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in EVENTS:
            self.times[self.file, EVENTS[event]] += 1
            self.seconds[self.file, EVENTS[event]] += duration_secs

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file = nodeid.partition("::")[0]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        output = getattr(self.config, "workeroutput", {})  # only a worker has one
        output["programs"] = [(*at, self.times[at], self.seconds[at]) for at in self.times]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for file, event, times, seconds in getattr(node, "workeroutput", {}).get("programs", []):
            self.times[file, event] += times
            self.seconds[file, event] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        def line(files: list[str]) -> str:
            compiled, found = (sum(self.times[file, event] for file in files) for event in ("compile", "found"))
            took = {event: sum(self.seconds[file, event] for file in files) for event in EVENTS.values()}
            return (
                f"{compiled - found:5} compiled in {took['compile'] - took['found']:6.1f} s, "
                f"{found:5} found in {took['found']:5.1f} s, traced in {took['trace']:6.1f} s"
            )

        files = sorted({file for file, _ in self.times}, key=lambda file: -self.seconds[file, "compile"])
        terminalreporter.section("compiled programs")
        terminalreporter.line(f"{line(files)}: all {len(files)} files")
        for file in files[:SLOWEST]:
            terminalreporter.line(f"{line([file])}: {file}")

"""SIGTERM to one of two processes: both end after the same step, of which there is a whole checkpoint."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from train.checkpoint import manager, restore
from train.preemption import preemption

TRAINING = """
import sys, time
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from train.checkpoint import check, finish, manager, restore, save
from train.preemption import preemption, stopped

port, process, folder = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
sharding = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
state = {"x": jax.make_array_from_callback((4, 3), sharding, lambda at: np.zeros((4, 3), np.float32)[at])}
checkpoints = manager(Path(folder), 2)
step, state = restore(checkpoints, state, {}) or (0, state)
print("resumed at", step, flush=True)
add = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)
with preemption() as preempted:
    while True:
        state, step = add(state), step + 1
        time.sleep(0.05)
        check(checkpoints)
        if preempted(step):
            save(checkpoints, step, state, {})
            finish(checkpoints)
            raise stopped(f"after step {step}, which is saved")
        if step % 5 == 0:
            save(checkpoints, step, state, {})
"""


@pytest.mark.complete
@pytest.mark.packaging
def test_all_processes_end_after_the_same_step(tmp_path: Path) -> None:
    first = _train_until_sigterm(tmp_path, of=1)
    second = _train_until_sigterm(tmp_path, of=0)
    assert second > first
    with manager(tmp_path / "checkpoints", 2) as checkpoints:
        step, state = restore(checkpoints, {"x": np.zeros((4, 3), np.float32)}, {}) or (0, {})
    assert step == second
    np.testing.assert_array_equal(state["x"], np.full((4, 3), second))


def _train_until_sigterm(folder: Path, of: int) -> int:
    """Starts two processes, ends process `of` when a checkpoint is there, and returns the step that both end after."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(2):
            command = [sys.executable, "-c", TRAINING, str(port), str(index), str(folder / "checkpoints")]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(stack.enter_context(subprocess.Popen(command, env=environment, **pipes)))
            stack.callback(processes[-1].kill)
        before = set((folder / "checkpoints").glob("[0-9]*"))
        while set((folder / "checkpoints").glob("*5")) <= before and processes[0].poll() is None:
            time.sleep(0.05)
        processes[of].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    steps = {line.split()[5] for _, error in said for line in error.splitlines() if line.startswith("stopped by SIG")}
    assert len(steps) == 1, said
    return int(steps.pop().rstrip(","))


def test_other_threads_have_no_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with preemption() as preempted:
            found.append((preempted(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]

"""SIGTERM to one of two processes: both end after the same step, of which there is a whole checkpoint."""

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Processes
from train.checkpoint import manager, restore
from train.preemption import preemption


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
    checkpoints = folder / "checkpoints"
    before = set(checkpoints.glob("[0-9]*"))
    with Processes.start("tests.train.counts_until_sigterm", [str(checkpoints)], devices=1) as two:
        while set(checkpoints.glob("*5")) <= before and two.started[0].poll() is None:
            time.sleep(0.05)
        two.started[of].send_signal(signal.SIGTERM)
        said = two.outputs(200)
    assert [status for status, _, _ in said] == [143, 143], said
    steps = {
        line.split()[5] for _, _, error in said for line in error.splitlines() if line.startswith("stopped by SIG")
    }
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

"""Joint training by two processes equals the same by one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.mergenet_jax.sharded import mesh_of, train
from tests.mergenet_jax.two_processes import DEVICES
from tests.tolerances import FP32

ROOT = Path(__file__).parents[2]


@pytest.mark.complete
@pytest.mark.packaging
def test_two_processes_equal_one():
    """Metrics of four steps, losses among them, within 1e-5: two processes of two devices each, and four devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.mergenet_jax.two_processes", str(number), "2", str(port)],
            cwd=ROOT,
            env=os.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        _, expected, _ = train(mesh_of({"data": 2, "fsdp": DEVICES}))
        (out, error), (_, other) = (process.communicate(timeout=300) for process in started)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], error + other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), json.loads(out.splitlines()[-1]), expected)

"""Joint training by two processes equals the same by one."""

import json

import jax
import numpy as np
import pytest

from tests.mergenet_jax.sharded import mesh_of, train
from tests.processes import Processes
from tests.tolerances import FP32

DEVICES = 2
"""Of each process."""


@pytest.mark.complete
@pytest.mark.packaging
def test_two_processes_equal_one():
    """Metrics of four steps, losses among them, within 1e-5: two processes of two devices each, and four devices."""
    with Processes.start("tests.mergenet_jax.two_processes", [], devices=DEVICES) as two:
        _, expected, _ = train(mesh_of({"data": 2, "fsdp": DEVICES}))
        (status, out, error), (other, _, other_error) = two.outputs(300)
    assert (status, other) == (0, 0), error + other_error
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **FP32), json.loads(out.splitlines()[-1]), expected)

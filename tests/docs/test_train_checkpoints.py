"""docs/train_checkpoints.md: its loop, run twice, continues where it was."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.docs.pages import run


def test_the_loop_of_the_page_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    step = jax.jit(lambda state: {"x": state["x"] + 1}, donate_argnums=0)

    def found(steps: int) -> dict[str, Any]:
        start = {"x": jax.device_put(np.zeros(3, np.float32))}
        return run("docs/train_checkpoints.md", {"state": start, "step": step, "steps": steps})

    assert found(200)["start"] == 0
    resumed = found(203)
    assert resumed["start"] == 200
    np.testing.assert_array_equal(resumed["state"]["x"], np.full(3, 203))
    assert sorted(path.name for path in Path("runs/mine/checkpoints").iterdir()) == ["100", "200"]

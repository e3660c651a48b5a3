"""Damaged checkpoints: one sentence, and nothing else on the screen."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from train.checkpoint import manager, restore, save

STATE = {f"leaf{i}": np.random.default_rng(i).normal(size=(50, 40)).astype(np.float32) for i in range(12)}


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _zeroed(data: bytes) -> bytes:
    return _cut(data) + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize("damage", [_cut, _zeroed])
@pytest.mark.parametrize("files", ["ocdbt.process_*/d/*", "_METADATA"])
def test_damaged_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes], files: str
) -> None:
    checkpoints = manager(tmp_path, 2)
    save(checkpoints, 3, STATE)
    step, found = restore(checkpoints, STATE) or (None, {})
    assert step == 3
    for name, leaf in STATE.items():
        np.testing.assert_array_equal(found[name], leaf)
    damaged = [path for path in (tmp_path / "3" / "default").glob(files) if path.stat().st_size > 1_000]
    assert damaged
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))
    capfd.readouterr()
    with pytest.raises(UserError, match=r"The checkpoint .*/3 cannot be read \(.+\); remove it to go on from the one"):
        restore(manager(tmp_path, 2), STATE)
    assert "Traceback" not in "".join(capfd.readouterr())

"""Trained tensors: written, read back, and refused with every problem named."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.errors import UserError
from models.smolav.config import SmolAVConfig
from models.smolav.params import CONFIG, TENSORS, read_config, read_trained, save_smolav, trained_shapes

TINY = SmolAVConfig.tiny()


def _random() -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), trained_shapes(TINY))


def test_round_trip(tmp_path: Path) -> None:
    trained = _random()
    save_smolav(tmp_path, TINY, trained)
    assert read_config(tmp_path) == TINY
    jax.tree.map(np.testing.assert_array_equal, read_trained(tmp_path, TINY), trained)


def test_every_problem_is_named(tmp_path: Path) -> None:
    save_smolav(tmp_path, TINY, _random())
    tensors = load_file(tmp_path / TENSORS)
    del tensors["lora.q.a"]
    tensors["media.video.mean"] = np.zeros(3, np.float32)
    tensors["surplus"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / TENSORS)
    with pytest.raises(UserError) as error:
        read_trained(tmp_path, TINY)
    for part in ("lora.q.a is missing", "surplus is unknown", "media.video.mean has shape (3,), not (12,)"):
        assert part in str(error.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="There is no"):
        read_trained(tmp_path, TINY)
    save_smolav(tmp_path, TINY, _random())
    whole = (tmp_path / TENSORS).read_bytes()
    (tmp_path / TENSORS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_trained(tmp_path, TINY)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(UserError, match="is not readable JSON"):
        read_config(tmp_path)

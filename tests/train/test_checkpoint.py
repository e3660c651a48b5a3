"""Checkpoints: saved beside the training, restored onto other devices; what is wrong is a sentence and nothing else."""

import contextlib
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import train.checkpoint
from models.errors import UserError
from train.checkpoint import check, finish, manager, restore, save
from train.digests import digests

STATE = {f"leaf{i}": np.random.default_rng(i).normal(size=(50, 40)).astype(np.float32) for i in range(12)}
SETTINGS = {"seed": 1, "stages": ({"steps": 5, "rate": 0.1}, {"steps": 7, "rate": 0.1})}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def saved(folder: Path) -> ocp.CheckpointManager:
    """Checkpoints of steps 3 and 6."""
    checkpoints = manager(folder, 2)
    for step in (3, 6):
        save(checkpoints, step, _state(step), SETTINGS)
    finish(checkpoints)
    return checkpoints


def _state(step: int) -> dict[str, np.ndarray]:
    return {name: leaf + np.float32(step) for name, leaf in STATE.items()}


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _zeroed(data: bytes) -> bytes:
    return _cut(data) + bytes(len(data) - len(data) // 2)


def _damage(checkpoint: Path, files: str, damage: Callable[[bytes], bytes] = _cut) -> None:
    damaged = [path for path in checkpoint.glob(files) if path.stat().st_size > 300]
    assert damaged
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))


def _equal(found: tuple[int, dict[str, jax.Array]] | None, step: int) -> None:
    assert found is not None and found[0] == step
    jax.tree.map(np.testing.assert_array_equal, found[1], _state(step))


@pytest.mark.parametrize("damage", [_cut, _zeroed])
@pytest.mark.parametrize("files", ["default/ocdbt.process_*/d/*", "default/_METADATA", "_CHECKPOINT_METADATA"])
def test_damage_is_named_and_skipped_when_asked(
    saved: ocp.CheckpointManager,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    files: str,
) -> None:
    _equal(restore(saved, STATE, SETTINGS), 6)
    _damage(folder / "6", files, damage)
    capfd.readouterr()
    message = r"The checkpoint .*/6 is damaged \(.+\); train with --skip-damaged to move it away and continue from 3\."
    with pytest.raises(UserError, match=message):
        restore(manager(folder, 2), STATE, SETTINGS)
    assert (folder / "6").is_dir()

    checkpoints = manager(folder, 2)
    _equal(restore(checkpoints, STATE, SETTINGS, skip_damaged=True), 3)
    assert [path.name for path in (folder.parent / "damaged").iterdir()] == ["6"]
    save(checkpoints, 6, _state(6), SETTINGS)
    finish(checkpoints)
    _equal(restore(manager(folder, 2), STATE, SETTINGS), 6)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_other_values_in_a_whole_file_are_damage(
    saved: ocp.CheckpointManager, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a flipped bit in a file whose format has no checksum: what Orbax reads differs by one word."""

    def flipped(*args: Any, **kwargs: Any) -> dict[str, Any]:
        state = whole(*args, **kwargs)
        name = next(iter(state))
        words = np.array(state[name]).view(np.uint32)
        words.flat[-1] ^= 1 << 30
        return state | {name: jax.numpy.asarray(words.view(np.float32))}

    whole = ocp.CheckpointManager.restore
    monkeypatch.setattr(ocp.CheckpointManager, "restore", flipped)
    with pytest.raises(UserError, match=r"/6 is damaged \(the values of .+ are not those that were saved\)"):
        restore(manager(folder, 2), STATE, SETTINGS)


def test_digests() -> None:
    """Each word counts, and where it stands; an array has one digest on every mesh."""
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    places = (2 * np.arange(24, dtype=np.uint64) + 1) * x.ravel().view(np.uint32).astype(np.uint64)
    assert digests({"a": x})["a"] == int(places.sum() % 2**32)
    assert digests({"a": x[:, ::-1].copy()}) != digests({"a": x})
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    found = digests({"a": placed, "b": [np.float32(1), x > 3], "c": x.astype(jax.numpy.bfloat16)})
    assert found["a"] == digests({"a": x})["a"] and found.keys() == {"a", "b/0", "b/1", "c"}
    assert digests({"a": np.zeros((0, 3), np.float32)}) == {"a": 0}


def test_nothing_whole_is_left(saved: ocp.CheckpointManager, folder: Path) -> None:
    shutil.rmtree(folder / "3")
    _damage(folder / "6", "default/_METADATA")
    with pytest.raises(UserError, match=r"/6 is damaged \(.+\); train with --skip-damaged to move it away and begin"):
        restore(manager(folder, 2), STATE, SETTINGS)
    (folder.parent / "damaged" / "6").mkdir(parents=True)  # of a time before
    assert restore(manager(folder, 2), STATE, SETTINGS, skip_damaged=True) is None
    assert (folder.parent / "damaged" / "6.1" / "default").is_dir()


def test_a_checkpoint_of_another_run(saved: ocp.CheckpointManager, folder: Path) -> None:
    other = {**SETTINGS, "stages": ({"steps": 5, "rate": 0.1}, {"steps": 9, "rate": 0.1})}
    with pytest.raises(UserError, match=r"/6 is of another run: its stages.1.steps is 7, not 9; name another"):
        restore(saved, STATE, other, skip_damaged=True)
    wider = {**STATE, "leaf3": np.zeros((50, 41), np.float32)}
    with pytest.raises(UserError, match=r"its leaf3 is float32\[50, 40\], not float32\[50, 41\]"):
        restore(saved, wider, SETTINGS)
    with pytest.raises(UserError, match=r"its leaf99 is absent, not float32\[2\]"):
        restore(saved, {**STATE, "leaf99": np.zeros(2, np.float32)}, SETTINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]


def test_a_checkpoint_of_another_version(
    saved: ocp.CheckpointManager, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train.checkpoint, "FORMAT", 3)
        with pytest.raises(UserError, match=r"/6 has format 2, not 3: another version of this program wrote it"):
            restore(saved, STATE, SETTINGS)
    saved.save(9, args=ocp.args.StandardSave(STATE))
    finish(saved)
    with pytest.raises(UserError, match=r"/9 has no format, not 2: another version"):
        restore(saved, STATE, SETTINGS)


def test_restored_onto_the_present_mesh(folder: Path) -> None:
    eight, two = (jax.make_mesh((n,), ("data",), devices=jax.devices()[:n]) for n in (8, 2))
    value = np.arange(64, dtype=np.float32).reshape(8, 8)
    state = {
        "rows": jax.device_put(value, NamedSharding(eight, PartitionSpec("data"))),
        "whole": jax.device_put(value, NamedSharding(eight, PartitionSpec())),
    }
    checkpoints = manager(folder, 1)
    save(checkpoints, 1, state, {})
    finish(checkpoints)

    def found(rows: NamedSharding | None) -> dict[str, jax.Array]:
        like = {"rows": jax.ShapeDtypeStruct((8, 8), np.float32, sharding=rows)}
        like["whole"] = jax.ShapeDtypeStruct((8, 8), np.float32)
        _, restored = restore(checkpoints, like, {}) or (0, {})
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, value), restored)
        return restored

    assert {leaf.sharding.device_set == {jax.devices()[0]} for leaf in found(None).values()} == {True}
    with jax.set_mesh(two):
        restored = found(NamedSharding(two, PartitionSpec(None, "data")))
        traced = found(NamedSharding(two.abstract_mesh, PartitionSpec("data")))
    assert restored["rows"].sharding == NamedSharding(two, PartitionSpec(None, "data"))
    assert restored["whole"].sharding == NamedSharding(two, PartitionSpec())
    assert traced["rows"].sharding == NamedSharding(two, PartitionSpec("data"))


def test_arrays_may_be_donated_while_they_are_saved(folder: Path) -> None:
    state = {name: jax.device_put(np.ones((500, 500), np.float32)) for name in STATE}
    checkpoints = manager(folder, 1)
    save(checkpoints, 1, state, {})
    addition = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    for _ in range(5):
        state = addition(state)
    finish(checkpoints)
    _, restored = restore(checkpoints, state, {}) or (0, {})
    assert {float(reduce(np.asarray(x))) for x in restored.values() for reduce in (np.min, np.max)} == {1.0}


def test_half_written_ones_are_removed(saved: ocp.CheckpointManager, folder: Path) -> None:
    half = folder / f"9{ocp.path.atomicity.TMP_DIR_SUFFIX}"
    shutil.copytree(folder / "6", half)
    with manager(folder, 2, read_only=True) as reading:
        _equal(restore(reading, STATE, SETTINGS), 6)
        assert half.is_dir()
    with manager(folder, 2) as checkpoints:
        save(checkpoints, 9, _state(9), SETTINGS)
        assert not (folder / "3").exists() or checkpoints.is_saving_in_progress()
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9"]


@contextlib.contextmanager
def _full_disk() -> Iterator[None]:
    """Files may not become larger than 200 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(saved: ocp.CheckpointManager, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = {"noise": np.random.default_rng(0).normal(size=100_000)}
    message = r"could not be written to .* \(File too large\); the one of step 6 is whole: make room"
    with _full_disk():
        save(saved, 9, large, SETTINGS)
        with pytest.raises(UserError, match=message):
            finish(saved)
    check(saved)  # it was said once
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]
    _equal(restore(manager(folder, 2), STATE, SETTINGS), 6)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"checkpoints cannot be written \(Not a directory\); name another --workdir"):
        manager(tmp_path / "file" / "checkpoints", 2)

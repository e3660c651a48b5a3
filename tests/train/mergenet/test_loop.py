"""Runs from the command line: killed and resumed, refused, stopped by NaN, finished and exported."""

import csv
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from tests.processes import Processes
from tests.train.mergenet import tiny
from train.mergenet.__main__ import main
from train.mergenet.augment import STATISTICS, normalise
from train.mergenet.checkpoint import check_claim, claim, load_exported
from train.mergenet.config import Recipe
from train.mergenet.data import load_pictures
from train.mergenet.loop import Run, train


def long() -> Recipe:
    """So many epochs that the run is killed long before its end."""
    return tiny.recipe(epochs=500, arm="zero")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    tiny.register()
    yield
    tiny.unregister()


def _train_forever(workdir: str) -> None:
    jax.config.update("jax_num_cpu_devices", 8)  # as in conftest
    tiny.register()
    train(Run(long(), (0,), Path(workdir)))


def _epochs(workdir: Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def _rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.complete
@pytest.mark.packaging
def test_killed_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = multiprocessing.get_context("spawn").Process(target=_train_forever, args=(str(killed),))
    process.start()
    try:
        while not _epochs(killed):
            assert process.is_alive(), "the run ended by itself"
            time.sleep(0.05)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    end = _epochs(killed)[-1] + 2
    said: list[str] = []
    assert train(Run(long(), (0,), killed, log=said.append), end) is None
    assert said[0] == f"resumed after epoch {end - 2}"
    train(Run(long(), (0,), whole, log=said.append), end)
    assert _rows(killed) == _rows(whole) and len(_rows(whole)) == 3 * end
    assert {row["kind"] for row in _rows(whole)} == {"train", "validation", "transfer"}
    other = dataclasses.replace(long(), merge=dataclasses.replace(long().merge, cycle=3))
    with pytest.raises(UserError, match=r"holds a run with recipe.merge.cycle 1, not 3; name another --workdir"):
        train(Run(other, (0,), whole))


def test_a_finished_run_is_told_and_exported(tmp_path: Path) -> None:
    said: list[str] = []
    recipe = tiny.recipe(train_pictures=8, arm="none", epochs=1)
    result: Any = train(Run(recipe, (0,), tmp_path, log=said.append))
    own = result["seeds"]["0"]["target"]
    assert list(result["seeds"]["0"]) == ["target"] and own["epoch"] == 1
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "metrics.png").stat().st_size > 10_000
    folder = tmp_path / "export" / "target"
    classifier = recipe.target.make(10)
    params, stats = load_exported(folder, recipe.target, 10)
    assert jax.tree.map(np.shape, (params, stats)) == jax.tree.map(lambda x: x.shape, classifier.shapes())
    assert len(open_checkpoint(folder).tensors) == len(jax.tree.leaves((params, stats)))  # and nothing else
    test = load_pictures("cifar10", "test")
    pictures = normalise(test.images[:10], STATISTICS["cifar10"])
    logits = jax.jit(lambda *given: classifier.apply(*given, pictures, train=False)[0].logits)(params, stats)
    right = float(np.mean(np.asarray(logits).argmax(-1) == test.labels[:10]))
    assert own["test_top1"] == pytest.approx(right, abs=1e-6)
    assert train(Run(recipe, (0,), tmp_path, log=said.append)) == json.loads(json.dumps(result))
    assert said[-1].endswith("is finished: " + str(tmp_path / "result.json"))
    with pytest.raises(UserError, match="and the source is .*tiny_resnet"):
        load_exported(folder, recipe.source, 10)

    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"result.json must hold a JSON object"):
        train(Run(recipe, (0,), tmp_path))
    (tmp_path / "result.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "default")
    with pytest.raises(UserError, match=r"The checkpoint .*/1 is damaged \(.*\); train with --skip-damaged to move it"):
        train(Run(recipe, (0,), tmp_path))


def test_folders_that_hold_no_such_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "within"):
        with pytest.raises(UserError, match=r"/file is a file, where a folder should be; name another --workdir"):
            check_claim(folder, {})
    (run := tmp_path / "run").mkdir()
    (run / "export").touch()
    with pytest.raises(UserError, match=r"/export is a file"):
        check_claim(run, {})
    (run / "export").unlink()
    check_claim(run, {"rate": 1})
    claim(run, {"rate": 1})
    check_claim(run, {"rate": 2})  # nothing has come of the run with 1
    (run / "result.json").touch()
    check_claim(run, {"rate": 1})
    with pytest.raises(UserError, match=r"holds a run with arm None, not kd"):
        check_claim(run, {"rate": 2, "arm": "kd"})
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"has results, but no run.json that says of which run"):
        check_claim(run, {"rate": 1})


def command(tmp_path: Path, *more: str) -> list[str]:
    models = ("--source.name", "tiny_resnet", "--target.name", "tiny_mobilenet", "--arm", "none")
    sizes = ("--train-pictures", "16", "--batch", "8", "--validation-pictures", "8", "--epochs", "3")
    return ["--recipe", "mergenet_cifar10", "--workdir", str(tmp_path), *models, *sizes, *more]


def test_nan_stops_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jumps = ("--target-sgd.milestones", "1", "--target-sgd.factor", "1e37", "--target-sgd.no-cosine")
    assert main(command(tmp_path, *jumps)) == 2
    told = capsys.readouterr().err.strip()
    assert "Stopped in epoch 2, step 2: target: values are not finite" in told and told.count("error: ") == 1
    assert _epochs(tmp_path) == [1]
    assert {row["epoch"] for row in _rows(tmp_path)} == {"1"}


@pytest.mark.complete
def test_sigterm_ends_a_run_after_the_running_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end_after_two(line: str) -> None:
        if line.startswith("epoch 2/"):
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = tiny.recipe(train_pictures=16, arm="none", epochs=3)
    with pytest.raises(SystemExit) as ended:
        train(Run(recipe, (0,), tmp_path, log=end_after_two))
    assert ended.value.code == 143
    expected = "stopped by SIGTERM in epoch 3, which begins anew; the same command continues the run\n"
    assert capsys.readouterr().err == expected
    assert _epochs(tmp_path) == [1, 2]
    said: list[str] = []
    assert train(Run(recipe, (0,), tmp_path, log=said.append)) is not None
    assert said[0] == "resumed after epoch 2"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arm", "magic"), "There is no arm 'magic'"),
        (("--recipe", "mergenet_no"), "There is no recipe 'mergenet_no'; take one of mergenet_both, mergenet_cifar10"),
        (("--source.name", "vgg"), "There is no classifier 'vgg'"),
        (("--data", "mnist"), "There are no pictures 'mnist'"),
        (("--merge.cycle", "0"), "cycle must be an integer of at least 1, not 0"),
        (("--target.width", "nan"), "A classifier's width must be above 0 and at most 64, not nan"),
        (("--target-sgd.rate", "nan"), "rate of SGD must be a finite number of at least 0, not nan"),
        (("--target-sgd.milestones", "-1"), "milestones of SGD must be at least 1, not (-1,)"),
        (("--arm", "frozen", "--direction", "both"), "The arm frozen goes one way only"),
        (("--batch", "17"), "Batches of 17 cannot be made of 16 rows"),
        (("--stop-at", "0"), "--stop-at must be at least 1 epoch, not 0"),
        (("--source-checkpoint", "nowhere"), "nowhere"),
    ],
)
def test_mistakes(more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(command(tmp_path, *more)) == 2
    except SystemExit as end:  # what the parser finds by itself
        assert end.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.complete
def test_a_mesh_divides_the_rows_and_changes_no_loss(tmp_path: Path) -> None:
    """One device, four, and two processes of one each; a seed alone, and two at once."""
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    train(Run(tiny.recipe(), (0,), tmp_path / "one"))
    with jax.set_mesh(mesh):
        train(Run(tiny.recipe(), (0,), tmp_path / "four"))
        train(Run(tiny.recipe(), (0, 3), tmp_path / "seeds"))
    with Processes.start("tests.train.mergenet.two_processes", [str(tmp_path / "processes")], devices=1) as both:
        said = both.outputs(600)
    assert [status for status, _, _ in said] == [0, 0], said
    one = _rows(tmp_path / "one")
    for name in ("four", "seeds", "processes"):
        other = [row for row in _rows(tmp_path / name) if row["seed"] == "0"]
        for metric in ("loss", "top1", "norm"):
            numbers = [[float(row[metric] or 0) for row in rows] for rows in (one, other)]
            np.testing.assert_allclose(*numbers, rtol=2e-3, err_msg=f"{name}, {metric}")
    exported = (tmp_path / name / "export" / "target" / "model.safetensors" for name in ("one", "processes"))
    assert len({path.stat().st_size for path in exported}) == 1

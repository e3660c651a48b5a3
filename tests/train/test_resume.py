"""A run that is killed, and started again, has the losses and the parameters of a run that was not."""

import csv
import multiprocessing
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np

from tests.train.synthetic import CONFIG, slower, tiny_run
from train.loop import train

LONG = slower(CONFIG, 4000)  # so many steps that the run is killed long before its end


def _train_forever(workdir: str) -> None:
    run, trained = tiny_run(Path(workdir), LONG)
    train(run, lambda: trained)


def _losses(workdir: Path) -> dict[tuple[str, str], str]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return {(row["step"], row["kind"]): row["loss"] for row in csv.DictReader(file)}


def test_killed_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_train_forever, args=(str(tmp_path / "killed"),))
    process.start()
    checkpoints, deadline = tmp_path / "killed" / "checkpoints", time.monotonic() + 240
    while not (checkpoints / "6").is_dir():
        assert process.is_alive() and time.monotonic() < deadline, "the run died, or reached no checkpoint"
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    reached = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    end = reached + 4

    run, trained = tiny_run(tmp_path / "killed", LONG)
    resumed = train(run, lambda: trained, stop_at=end)
    run, trained = tiny_run(tmp_path / "whole", LONG)
    whole = train(run, lambda: trained, stop_at=end)

    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def test_training_learns(tmp_path: Path) -> None:
    said: list[str] = []
    run, trained = tiny_run(tmp_path)
    before = {name: np.asarray(value) for name, value in trained["media"]["video"]["up"].items()}
    after = train(type(run)(**{**vars(run), "say": said.append}), lambda: trained)
    assert not np.array_equal(before["kernel"], np.asarray(after["media"]["video"]["up"]["kernel"]))
    np.testing.assert_array_equal(after["media"]["video"]["mean"], trained["media"]["video"]["mean"])
    assert (tmp_path / "metrics.png").is_file()
    assert any("validation" in line for line in said)

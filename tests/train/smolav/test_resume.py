"""A run that is killed, and started again, has the losses and the parameters of a run that was not."""

import csv
import dataclasses
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from models.errors import UserError
from tests.train.synthetic import CONFIG, tiny_run, with_last_stage
from train.log import read_metrics
from train.smolav.loop import train

LONG = with_last_stage(CONFIG, 4000)  # so many steps that the run is killed long before its end


def _train_forever(workdir: str) -> None:
    # As in conftest, whose eight devices change how a matrix product is divided, and so its last bit.
    jax.config.update("jax_num_cpu_devices", 8)
    run, trained = tiny_run(Path(workdir), LONG)
    train(run, lambda: trained)


def _newest(checkpoints: Path) -> int:
    """The newest checkpoint's step, 0 without one."""
    return max((int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()), default=0)


def _losses(workdir: Path) -> dict[tuple[str, str], str]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return {(row["step"], row["kind"]): row["loss"] for row in csv.DictReader(file)}


@pytest.mark.complete
@pytest.mark.packaging
def test_killed_run_resumes_to_the_same_losses(tmp_path: Path) -> None:
    checkpoints = tmp_path / "killed" / "checkpoints"
    process = multiprocessing.get_context("spawn").Process(target=_train_forever, args=(str(checkpoints.parent),))
    process.start()
    try:
        while _newest(checkpoints) < 6:
            assert process.is_alive(), "the run ended by itself"
            time.sleep(0.05)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    reached = _newest(checkpoints)
    end = reached + 4

    run, trained = tiny_run(tmp_path / "killed", LONG)
    resumed = train(run, lambda: trained, stop_at=end)
    run, trained = tiny_run(tmp_path / "whole", LONG)
    whole = train(run, lambda: trained, stop_at=end)

    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "whole")


def test_training_learns_and_a_run_cut_short_ends_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    run, trained = tiny_run(tmp_path / "whole")
    before = jax.tree.map(np.array, trained["media"]["video"])  # copies: the state is donated
    whole = train(dataclasses.replace(run, log=said.append), lambda: trained)
    video = whole["media"]["video"]
    assert not np.array_equal(before["up"]["kernel"], np.asarray(video["up"]["kernel"]))
    rows = read_metrics(tmp_path / "whole" / "metrics.csv")
    losses = [float(row["loss"]) for row in rows if row["kind"] == "train"]
    assert len(losses) == CONFIG.steps
    assert losses[-1] < losses[0] - 0.1, losses
    np.testing.assert_array_equal(video["mean"], before["mean"])
    assert (tmp_path / "whole" / "metrics.png").is_file()
    assert any("validation" in line for line in said)

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    newest = _newest(tmp_path / "cut" / "checkpoints")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(newest))
    with pytest.raises(UserError, match=r"/9 is of another run: its warmup is 2, not 3; name another --workdir"):
        train(tiny_run(tmp_path / "cut", dataclasses.replace(CONFIG, warmup=3))[0], lambda: pytest.fail("it starts"))
    run, _ = tiny_run(tmp_path / "cut", dataclasses.replace(CONFIG, save_every=1, keep=1))
    resumed = train(dataclasses.replace(run, log=said.append), lambda: pytest.fail("it starts anew"))
    assert said.count("resumed at step 9") == 1
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")


def test_sigterm_saves_after_the_running_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def end_after_three(line: str) -> None:
        if line.startswith("step 3 "):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    run, trained = tiny_run(tmp_path)
    with pytest.raises(SystemExit) as ended:
        train(dataclasses.replace(run, log=end_after_three), lambda: trained)
    assert ended.value.code == 143
    expected = "stopped by SIGTERM after step 3, which is saved; the same command continues the run\n"
    assert capsys.readouterr().err == expected
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert signal.getsignal(signal.SIGTERM) == before

"""A small training in a process of its own: killed within saves, or ended by SIGTERM in the midst of one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill_training import Kill, ended_well, make_plan, resumed_at, saves, state_of, training, whole
from train.log import read_metrics


@pytest.mark.complete
@pytest.mark.packaging
def test_kills_within_saves_cost_no_whole_checkpoint() -> None:
    """Three kills of docs/kill_training.md's kind, at moments of another seed."""
    command = [sys.executable, "-m", "tests.kill_training", "--kills", "3", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "- 3 of 3 kills cost no whole checkpoint, and no step before it." in run.stdout
    assert "equal to the last bit" in run.stdout


@pytest.mark.complete
@pytest.mark.packaging
def test_sigterm_within_a_save(tmp_path: Path) -> None:
    with training(tmp_path, 20) as process:
        saving = next(saves(process, tmp_path / "checkpoints"))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    said = (tmp_path / "output").read_text()
    reached = int(read_metrics(tmp_path / "metrics.csv")[-1]["step"])
    assert f"stopped by SIGTERM after step {reached}, which is saved; the same command continues the run" in said
    assert max(whole(tmp_path / "checkpoints")) == reached >= saving
    with training(tmp_path, 20) as process:
        ended_well(process, tmp_path)
    assert resumed_at(tmp_path) == reached
    assert [int(row["step"]) for row in read_metrics(tmp_path / "metrics.csv")] == [*range(1, 21), 20]


def test_what_the_report_would_complain_about(tmp_path: Path) -> None:
    well = Kill(saving=15, after_ms=9, found="half-written", seen=10, newest=10, reached=17, resumed=10)
    assert well.lost == 7 and well.verdict == "yes"
    gone = Kill(saving=15, after_ms=9, found="half-written", seen=10, newest=5, reached=17, resumed=5)
    assert gone.verdict == "step 10 was whole and is gone"
    elsewhere = Kill(saving=15, after_ms=9, found="whole", seen=10, newest=15, reached=17, resumed=10)
    assert elsewhere.verdict == "resumed at 10, not at 15"

    for name in ("5", "10", "15.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert state_of(15, tmp_path) == "half-written"
    (tmp_path / "15.orbax-checkpoint-tmp").rename(tmp_path / "15")
    assert state_of(15, tmp_path) == "whole, older one left"
    (tmp_path / "5").rmdir()
    assert state_of(15, tmp_path) == "whole"
    assert make_plan(9, 1) == make_plan(9, 1) != make_plan(9, 2)

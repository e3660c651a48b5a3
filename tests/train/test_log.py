"""The metrics file of a resumed run."""

import resource
from pathlib import Path

import pytest

from models.errors import UserError
from train.log import MetricsLog, plot_metrics, read_metrics


def _row(step: int, loss: float) -> dict[str, object]:
    return {"step": step, "stage": "first", "kind": "train", "loss": loss, "exact": 0.5, "tokens_per_second": 7}


def test_resuming_drops_what_will_be_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    for step in (10, 20, 30):
        log.write(**_row(step, step / 10))
    MetricsLog(path, 20).write(**_row(30, 9.0))
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [("10", "1.0"), ("20", "2.0"), ("30", "9.0")]
    plot_metrics(path, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_that_does_not_fit_on_a_disk_leaves_no_part(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    log.write(**_row(10, 1.0))
    content, before = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 5, before[1]))
    try:
        with pytest.raises(UserError, match="metrics.csv cannot be written"):
            log.write(**_row(20, 2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"10,first,train,1.0,0.5,7\n20,first,train,1.0,0.5,7\n", b"step\n\xff\xfe\n", b"step\nten\n"]
)
def test_what_is_no_table_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match="metrics.csv is no table of measurements by step"):
        MetricsLog(path, 20)
    assert path.read_bytes() == content


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    log.write(**_row(10, 1.0))
    with path.open("a") as file:
        file.write("1")  # of step 100
    assert [row["step"] for row in read_metrics(path)] == ["10"]
    MetricsLog(path, 50).write(**_row(60, 2.0))
    assert [row["step"] for row in read_metrics(path)] == ["10", "60"]


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    path.unlink()
    path.symlink_to("/dev/full")
    message = r"metrics.csv cannot be written \(No space left on device\); make room, and continue the run with"
    with pytest.raises(UserError, match=message):
        log.write(**_row(10, 1.0))

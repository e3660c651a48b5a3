"""Measurements of a run: one CSV, and a plot of it."""

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.errors import UserError

COLUMNS: list[str] = ["step", "stage", "kind", "loss", "exact", "tokens_per_second"]


class MetricsLog:
    """A CSV of measurements that a resumed run continues."""

    def __init__(self, path: Path, resumed_at: int, columns: Sequence[str] = COLUMNS) -> None:
        """Opens the file and drops what was measured after step `resumed_at`, which will be measured again.

        Raises:
            UserError: if the file is no such CSV, or cannot be written.
        """
        self.path = path
        self.columns = columns
        kept = [row for row in read_metrics(path) if int(row["step"]) <= resumed_at] if path.exists() else []
        draft = path.with_name(f"{path.name}.part")
        with _told(path), draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def write(self, **values: object) -> None:
        """Appends a row.

        Raises:
            UserError: if it cannot be written.
        """
        with _told(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(values)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the disk in a sentence."""
    try:
        yield
    except OSError as problem:
        raise UserError(
            f"{path} cannot be written ({problem.strerror}); make room, and continue the run with the same command."
        ) from problem


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV; a last one whose end is missing was being written when a run was killed, and is left out.

    Raises:
        UserError: if it cannot be read, or has no steps.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        for row in rows:
            int(row["step"])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as problem:
        raise UserError(f"{path} is no table of measurements by step; repair it, or name another folder.") from problem
    return rows


def plot_metrics(path: Path, picture: Path) -> None:
    """Draws loss and exact match over the steps, a dashed line where a stage begins.

    Raises:
        UserError: if the CSV cannot be read, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(path)
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axis, name in zip(figure.subplots(2, 1, sharex=True), ("loss", "exact"), strict=True):
        for kind, style in (("train", "-"), ("validation", "o-")):
            chosen = [row for row in rows if row["kind"] == kind]
            axis.plot([int(r["step"]) for r in chosen], [float(r[name]) for r in chosen], style, label=kind, ms=4)
        for before, after in zip(rows, rows[1:], strict=False):
            if before["stage"] != after["stage"]:
                axis.axvline(int(after["step"]), color="grey", ls="--", lw=0.8)
        axis.set_ylabel({"loss": "cross entropy of answer tokens", "exact": "answers exactly right"}[name])
        axis.grid(alpha=0.3)
        axis.legend()
    axis.set_xlabel("step")
    draft = picture.with_name(f"{picture.name}.part")
    with _told(picture):
        figure.savefig(draft, format="png", dpi=120)
        draft.replace(picture)

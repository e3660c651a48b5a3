"""Measurements of a run: their columns, and a plot of them."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.files import replacing
from train.log import read_metrics

TITLES = {"top1": "share right"}
OF_TRANSFERS = {
    "norm": "norm: written / there",
    "cosine": "cosine: written, there",
    "moved": "moved until the adapter update",
}
TRANSFER = ("norm", "cosine", "moved", "gradient")


def columns(metrics: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Columns of the CSV of a run, whose models have these metrics."""
    own = dict.fromkeys(metric for labels in metrics.values() for metric in labels)
    return ["step", "epoch", "seed", "name", "kind", "loss", *own, *TRANSFER, "transfers", "seconds"]


def panels(metrics: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Columns that are drawn, with their titles: of each model the metric that selects."""
    chosen = {metric: TITLES.get(metric, label) for labels in metrics.values() for metric, label in _first(labels)}
    return {"loss": "cross entropy (with distillation, its loss)"} | chosen | OF_TRANSFERS


def _first(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    return list(labels.items())[:1]


def averages(metrics: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over steps, by model and transfer; those of transfers are averaged over those that took place.

    Args:
        metrics: of each step, arrays of [seeds].
    """
    found: dict[str, dict[str, Any]] = {}
    for name in metrics[0]:
        sums = {key: np.sum([step[name][key] for step in metrics], axis=0) for key in metrics[0][name]}
        if "transferred" not in sums:
            found[name] = {key: value / len(metrics) for key, value in sums.items()}
            continue
        count = sums["transferred"]
        found[name] = {key: sums[key] / np.maximum(count, 1) for key in TRANSFER} | {"transfers": count}
    return found


def plot(path: Path, picture: Path, titles: Mapping[str, str]) -> None:
    """Draws columns of a CSV, under these titles, over the epochs: one line per model or transfer, seeds alike."""
    from matplotlib.figure import Figure

    lines: dict[str, dict[tuple[str, str], list[tuple[int, float]]]] = {panel: defaultdict(list) for panel in titles}
    for row in read_metrics(path):
        for panel in titles:
            if row[panel]:
                label = f"{row['name']} {row['kind']}" if row["kind"] != "transfer" else row["name"]
                lines[panel][label, row["seed"]].append((int(row["epoch"]), float(row[panel])))
    drawn = [panel for panel in titles if lines[panel]]
    figure = Figure(figsize=(8, 2.6 * len(drawn)), layout="constrained")
    for axis, panel in zip(figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0], drawn, strict=True):
        colours: dict[str, str] = {}
        for (label, _), points in lines[panel].items():
            new = label not in colours
            colour = colours.setdefault(label, f"C{len(colours)}")
            axis.plot(*zip(*points, strict=True), "o-", ms=3, color=colour, label=label if new else None)
        axis.set_ylabel(titles[panel], fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.axes[-1].set_xlabel("epoch")
    with replacing(picture) as draft:
        figure.savefig(draft, dpi=120)

"""Table and plot of an experiment with MergeNet."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from eval.intervals import Interval, detectable, mean_interval, paired_difference
from models.files import replacing
from train.mergenet.arms import ARMS

RIVAL = "dkd"
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]


def summary(found: Found, metric: str) -> dict[str, Any]:
    """Means and paired differences of a metric, in percent; None where one seed says nothing.

    An arm is compared with the first one, with its controls, and with distillation.

    Args:
        found: by arm and seed; the arms have the same seeds.
        metric: a share, such as "test_top1".
    """
    scores = {arm: [100 * seeds[seed][metric] for seed in seeds] for arm, seeds in found.items()}
    first = next(iter(scores))
    means = {arm: _told(mean_interval(values)) for arm, values in scores.items()}
    differences = []
    for arm in scores:
        for other in dict.fromkeys((first, *ARMS[arm].controls, RIVAL)):
            if other in scores and other != arm:
                interval = paired_difference(scores[arm], scores[other])
                found_out = {"detectable": _number(detectable(interval)), "excludes_zero": interval.excludes_zero}
                differences.append({"arm": arm, "other": other, **_told(interval), **found_out})
    return {"means": means, "differences": differences}


def _told(interval: Interval) -> dict[str, Any]:
    return {name: _number(value) for name, value in dataclasses.asdict(interval).items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def table(results: Mapping[str, Any]) -> Group:
    """Every arm's metric, and its differences."""
    others = list(dict.fromkeys(_column(d) for d in results["differences"]))
    columns = sorted(others, key=lambda name: name == f"- {RIVAL}")
    title = f"{results['recipe']}: {results['split']} {results['metric']} in %, 95 % t intervals"
    made = Table(title=title, title_justify="left", pad_edge=False)
    made.add_column("arm", no_wrap=True)
    for name in ("n", results["metric"], *columns, "ms/step"):
        made.add_column(name, justify="right", no_wrap=True)
    for arm, mean in results["means"].items():
        own = {_column(d): d for d in results["differences"] if d["arm"] == arm}
        cells = [_interval(own[name], sign=True) if name in own else "" for name in columns]
        seconds = np.median([s for seed in results["arms"][arm].values() for s in seed["seconds"]])
        made.add_row(arm, str(mean["n"]), _interval(mean), *cells, f"{1e3 * seconds:.0f}")
    note = (
        "Over seeds of the target, for this source and these test data; * the interval excludes 0, without correction "
    )
    note += "for the number of comparisons."
    found = [d["detectable"] for d in results["differences"] if d["detectable"] is not None]
    if found:
        note += f" Of five true differences of {max(found):.1f} points or more, any comparison would show four; the "
        note += f"middle one of {np.median(found):.1f} points."
    return Group(made, note)


def _column(difference: Mapping[str, Any]) -> str:
    return f"- {difference['other'].removeprefix('plus_')}"


def _interval(interval: Mapping[str, Any], *, sign: bool = False) -> str:
    star = "*" if interval.get("excludes_zero") else ""
    spread = "?" if interval["half_width"] is None else f"{interval['half_width']:.2f}"
    return f"{interval['mean']:{'+' if sign else ''}.2f} ± {spread}{star}"


def draw(results: Mapping[str, Any], picture: Path) -> None:
    """Draws the arms' metric, differences to placebos and to the first arm, and the transfers over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    (left, right), (norm, cosine) = figure.subplots(2, 2)
    arms = list(results["arms"])
    for i, arm in enumerate(arms):
        values = [100 * seed[f"{results['split']}_{results['metric']}"] for seed in results["arms"][arm].values()]
        left.plot(values, [i] * len(values), "o", ms=3, color="C0", alpha=0.5)
        left.errorbar(
            results["means"][arm]["mean"], i, xerr=results["means"][arm]["half_width"], fmt="D", ms=4, color="C1"
        )
    left.set(
        yticks=range(len(arms)),
        yticklabels=arms,
        xlabel=f"{results['split']} {results['metric']}, % (a dot per seed; mean, 95 %)",
    )
    rows = [d for d in results["differences"] if d["other"] != RIVAL]
    for i, d in enumerate(rows):
        colour = "C2" if d["excludes_zero"] else "C7"
        right.errorbar(d["mean"], i, xerr=d["half_width"], fmt="D", ms=4, color=colour)
    labels = [f"{d['arm']} - {d['other']}" for d in rows]
    right.set(yticks=range(len(rows)), yticklabels=labels, xlabel="paired difference, points (green: excludes 0)")
    right.axvline(0, color="black", lw=0.8)
    for axis, key, label in ((norm, "norm", "norm: written / there"), (cosine, "cosine", "cosine: written, there")):
        for arm in arms:
            curves = [seed[key] for seed in results["arms"][arm].values()]
            if curves[0]:
                axis.plot(range(1, len(curves[0]) + 1), np.mean(curves, 0), "o-", ms=3, label=arm)
        axis.set(xlabel="epoch", ylabel=label)
        if axis.lines:  # some arm transfers
            axis.legend(fontsize=7)
            axis.set_yscale("log" if axis is norm else "linear")
    for axis in (left, right, norm, cosine):
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in (left, right):
        axis.invert_yaxis()
    with replacing(picture) as draft:
        figure.savefig(draft, dpi=110)

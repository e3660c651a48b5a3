"""Pictures of a scoreboard as SVG text: scores against bytes, and a map of overlaps."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0
"""Inches; a browser scales the picture to its column."""
SHOWN = 8
"""Policies with a colour of their own; the others are grey."""
Rows = Sequence[Mapping[str, Any]]


def score_curves(lines: Rows, title: str, shown: Sequence[str]) -> str:
    """Scores against the share of the full cache's bytes: a line for each policy, and the full cache's own score.

    Args:
        lines: of one task, turn and group, as scoreboard.json has them.
        title: above the picture.
        shown: policies with a colour, a marker and intervals.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axis = figure.subplots()
    draw_curves(axis, lines, title, shown)
    axis.legend(fontsize=8, ncols=2)
    return svg(figure)


def draw_curves(axis: Axes, lines: Rows, title: str, shown: Sequence[str]) -> None:
    """The picture of `score_curves`, without its legend."""
    full = next(line for line in lines if line["policy"] == "full")
    axis.axhline(full["score"]["value"], color="black", lw=1, ls="--", label="full cache")
    axis.axhspan(full["score"]["low"] or 0, full["score"]["high"] or 0, color="black", alpha=0.07, lw=0)
    by_policy: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["policy"] != "full" and line["share"]:
            by_policy.setdefault(line["policy"], []).append(line)
    for policy, own in by_policy.items():
        own = sorted(own, key=lambda line: line["share"])
        x, y = [100 * line["share"] for line in own], [line["score"]["value"] for line in own]
        if policy not in shown:
            axis.plot(x, y, color="0.8", lw=1, zorder=1)
            continue
        number = list(shown).index(policy)
        ends = np.array([[line["score"][end] for line in own] for end in ("low", "high")], float)  # None becomes NaN
        spread = np.nan_to_num(np.abs(ends - y))
        axis.errorbar(x, y, spread, color=f"C{number}", marker="osv^Dph*"[number % 8], ms=5, capsize=2, label=policy)
    axis.set_xscale("log")
    ticks = [tick for tick in (2, 5, 10, 20, 50, 100) if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("bytes of the cache, as a share of the full cache's")
    axis.set_ylabel(lines[0]["metric"].replace("_", " "))
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(alpha=0.3)


def overlap_map(policies: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """The overlap of each pair of policies as a map of numbers."""
    size = len(policies)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.32 * size), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(size), policies, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(size), policies, fontsize=7)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            color = "w" if share > 0.6 else "k"
            axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=color)
    return svg(figure)


def svg(figure: Figure) -> str:
    """A figure as an element of a page, the same bytes every time."""
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "acckv", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]

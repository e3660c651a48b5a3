"""Draws scoreboard/curves.png from scoreboard/default/scoreboard.json: `python docs/plot_scoreboard.py`."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from eval.scoreboard.curves import draw_curves

FOLDER = Path(__file__).parent / "scoreboard"
SHOWN = ("quantized(acckv_plus):bits=4", "acckv_plus", "acckv", "kvzip", "snapkv", "random")


def main() -> None:
    """Two panels, of first and later questions about the clips: right answers against the bytes of the cache."""
    lines = json.loads((FOLDER / "default" / "scoreboard.json").read_text())["lines"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, turn in zip(figure.subplots(1, 2, sharey=True), ("first", "later"), strict=True):
        own = [line for line in lines if (line["task"], line["turn"], line["group"]) == ("clips", turn, "all")]
        draw_curves(axis, own, f"{turn} question" + "s" * (turn == "later"), SHOWN)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(FOLDER / "curves.png", dpi=130)


if __name__ == "__main__":
    main()

"""Draws policies.png from the measured accuracies: `python docs/plot_policies.py`."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
ROWS = json.loads((FOLDER.parent / "models/smolav/policy_accuracy.json").read_text())["rows"]
KINDS = ("video", "spoken words", "instruments", "audio-visual")
COLORS = {"first": "#1f5fa8", "second": "#d0661c"}


def accuracy(policy: str, budget: float, question: str) -> tuple[float, float]:
    """Share of right answers and its standard error."""
    (row,) = [r for r in ROWS if (r["policy"], r["budget"], r["question"]) == (policy, budget, question)]
    asked = sum(row[kind]["asked"] for kind in KINDS)
    return row["all"], (row["all"] * (1 - row["all"]) / asked) ** 0.5


def main() -> None:
    """One panel a budget: each policy's accuracy on first and second questions, the full cache as a line."""
    policies = list(dict.fromkeys(row["policy"] for row in ROWS if row["policy"] != "full"))
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    for panel, budget in zip(panels, (0.2, 0.1), strict=True):
        for question, color in COLORS.items():
            panel.axvline(accuracy("full", 1.0, question)[0], color=color, linestyle="--", linewidth=1)
            found = [accuracy(policy, budget, question) for policy in policies]
            values, errors = zip(*found, strict=True)
            label = f"{question} question (dashed: full cache)"
            panel.errorbar(values, policies, xerr=errors, fmt="o", color=color, label=label, capsize=2)
        panel.set(title=f"{budget:.0%} of the cache kept", xlim=(0.2, 1), xlabel="exact answers")
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(FOLDER / "policies.png", dpi=130)


if __name__ == "__main__":
    main()

"""Results as a table and a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.intervals import Interval, detectable, mean_interval, paired_difference
from eval.mergenet_smolav.run import TRAINED
from train.mergenet.arms import ARMS

MEASURES = {"pictures": "pictures", "sounds": "sounds", "questions": "questions", "audio-visual": "audio-visual ones"}
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Measurements by arm and seed."""


def differences(results: Results, measure: str) -> dict[tuple[str, str], Interval]:
    """By arm and control: what the arm is above it, over the seeds that both have."""
    found = {}
    for arm in results:
        for other in () if arm == TRAINED else ARMS[arm].controls:
            if other in results and (seeds := sorted(results[arm].keys() & results[other].keys())):
                found[arm, other] = paired_difference(
                    _values(results, arm, measure, seeds), _values(results, other, measure, seeds)
                )
    return found


def table(results: Results) -> str:
    """Markdown: means over seeds with 95 % intervals, and under them paired differences to their controls."""
    lines = ["| arm | seeds | " + " | ".join(MEASURES.values()) + " |", "|---" * (len(MEASURES) + 2) + "|"]
    compared = {measure: differences(results, measure) for measure in MEASURES}
    for arm in sorted(results, key=lambda name: name != TRAINED):
        seeds = sorted(results[arm])
        means = [mean_interval(_values(results, arm, measure, seeds)) for measure in MEASURES]
        cells = [f"{mean.mean:.3f}" + (f" ± {mean.half_width:.3f}" if mean.n > 1 else "") for mean in means]
        lines.append(f"| `{arm}` | {len(seeds)} | " + " | ".join(cells) + " |")
        for pair, found in compared["questions"].items():
            if pair[0] == arm:
                cells = [str(compared[measure][pair]) for measure in MEASURES]
                lines.append(f"| - `{pair[1]}` | {found.n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sentences(results: Results) -> list[str]:
    """Whether arms answer more questions than their controls."""
    said = []
    for (arm, other), found in differences(results, "questions").items():
        if found.n < 2:
            verdict = "one seed shows nothing"
        elif not found.mean and not found.half_width:
            verdict = "every seed answers as many with both"
        elif found.excludes_zero:
            verdict = "it is better" if found.mean > 0 else "it is worse"
        else:
            verdict = (
                f"they are not shown to differ (with this spread, a gain of {detectable(found):.3f} would be seen four "
                "times out of five)"
            )
        said.append(f"`{arm}` answers {found} of the questions more than `{other}` ({found.n} seeds): {verdict}.")
    if said:
        said.append("Intervals are over seeds of the target, for one source and the same test clips.")
    return said


def _values(results: Results, arm: str, measure: str, seeds: Sequence[int]) -> list[float]:
    return [results[arm][seed]["right"][measure] for seed in seeds]

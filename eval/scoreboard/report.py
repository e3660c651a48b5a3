"""A scoreboard as one HTML file that needs no network, for readers who know none of the terms."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.scoreboard.curves import SHOWN, overlap_map, score_curves
from eval.scoreboard.suite import BEST
from models.files import write_text

TEMPLATES = Path(__file__).with_name("templates")
TURNS = {"first": "first question", "later": "later questions"}
ALWAYS = (BEST, "acckv", "acckv_plus", "random")
"""Policies that every curve shows in colour, if they are there."""
TENTH, MOST = 0.105, 8
"""Largest share of the full cache's bytes of a line in the summary, and how many policies that has beside `ALWAYS`."""


def write_report(path: Path, result: Mapping[str, Any], pictures: Mapping[str, str]) -> None:
    """Writes the report.

    Args:
        path: of the file.
        result: as in scoreboard.json.
        pictures: by policy, what it keeps of the clip in `result`, as SVG.
    """
    tasks = _tasks(result)
    parts = {"tasks": tasks, "summary": _summary(tasks), "overlap": _overlap(result), "clip": result.get("clip")}
    write_page(path, "report", pictures, result=result, **parts)


def write_page(path: Path, template: str, pictures: Mapping[str, str], **values: Any) -> None:
    """Writes a page from one of the templates, with pictures as SVG by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": _score, "signed": _signed, "size": _size, "percent": lambda x: f"{100 * x:.0f} %"}
    shown = {name: Markup(picture) for name, picture in pictures.items()}
    write_text(path, environment.get_template(f"{template}.html.j2").render(pictures=shown, **values))


def _tasks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By task and turn: its picture, and its table of all kinds of questions together."""
    found = []
    lines = result["lines"]
    for task, turn in dict.fromkeys((line["task"], line["turn"]) for line in lines):
        own = [line for line in lines if (line["task"], line["turn"]) == (task, turn)]
        groups = list(dict.fromkeys(line["group"] for line in own))
        whole = [line for line in own if line["group"] == "all"]
        found.append(
            {
                "task": task,
                "turn": turn,
                "title": f"{task}: {TURNS[turn]}",
                "metric": whole[0]["metric"].replace("_", " "),
                "clips": whole[0]["score"]["clips"],
                "curves": Markup(score_curves(whole, f"{task}, {TURNS[turn]}", _shown(whole))),
                "groups": groups,
                "rows": [(line, _by_group(own, line)) for line in whole],
            }
        )
    return found


def _summary(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best policies at about a tenth of the full cache's bytes, over all tasks and turns, and those always shown.

    Of a policy that was asked at several budgets the largest cache counts that is no larger than `TENTH`.
    """
    columns, found = [], dict[str, list[Mapping[str, Any] | None]]()
    for number, part in enumerate(task for task in tasks if any(line["share"] for line, _ in task["rows"])):
        columns.append(part)
        for line, _ in sorted(part["rows"], key=lambda row: row[0]["share"] or 0):
            if line["policy"] == "full" or 0 < (line["share"] or 0) <= TENTH:
                own = found.setdefault(line["policy"], [])
                own += [None] * (number + 1 - len(own))
                own[number] = line
    whole = {name: own for name, own in found.items() if len(own) == len(columns) and None not in own}

    def loss(name: str) -> float:
        """Mean difference to the full cache, positive where it is worse."""
        gains = [line["to_full"]["value"] * (1 if line["lower_is_better"] else -1) for line in whole[name] if line]
        return sum(gains) / len(gains)

    ranked = sorted((name for name in whole if name != "full"), key=loss) if columns else []
    kept = [name for number, name in enumerate(ranked) if number < MOST or name in ALWAYS]
    rows = [(name, whole[name]) for name in (*(["full"] if "full" in whole else []), *kept)]
    return {"columns": columns, "rows": rows, "best": ranked[0] if ranked else None}


def _by_group(lines: Sequence[Mapping[str, Any]], of: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores of a policy at a budget by group."""
    return [line["score"] for line in lines if (line["policy"], line["budget"]) == (of["policy"], of["budget"])]


def _shown(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The policies that are always shown, and the best of the others."""
    sign = -1 if lines[0]["lower_is_better"] else 1
    means: dict[str, list[float]] = {}
    for line in lines:
        if line["policy"] != "full":
            means.setdefault(line["policy"], []).append(sign * line["score"]["value"])
    best = sorted(means, key=lambda name: -sum(means[name]) / len(means[name]))
    always = [name for name in ALWAYS if name in means]
    return [*always, *(name for name in best if name not in always)][:SHOWN]


def _overlap(result: Mapping[str, Any]) -> dict[str, Any]:
    found = result["overlap"]
    names, shares = found["policies"], found["shares"]
    same = [
        (one, other) for i, one in enumerate(names) for j, other in enumerate(names) if i < j and shares[i][j] > 0.999
    ]
    return {"budget": found["budget"], "map": Markup(overlap_map(names, shares)), "same": same}


def _score(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _signed(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:+.3f}"
    return f"{estimate['value']:+.3f} ({estimate['low']:+.3f} to {estimate['high']:+.3f})"


def _size(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f} MB"

"""docs/tasks.md and docs/add_a_task.md: they name every task, metric and default, and what parsers make of answers."""

import re

import pytest

from eval.metrics import METRICS
from eval.tasks import letters
from eval.tasks.interface import Task
from eval.tasks.official import OfficialTask
from eval.tasks.registry import COMPOSED, TASKS
from tests.docs.pages import ROOT

TASKS_PAGE, ADD_A_TASK = ((ROOT / f"docs/{name}.md").read_text() for name in ("tasks", "add_a_task"))
OFFICIAL = [name for name, task in TASKS.items() if issubclass(task, OfficialTask)]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_in_a_table(name):
    composed, without, what = name.partition("_without_")
    named = [composed, without + what] if without and composed in COMPOSED else [name]
    rows = "".join(line for line in TASKS_PAGE.splitlines() if line.startswith("| `"))
    assert [part for part in named if f"`{part}`" not in rows] == [], "add a row to docs/tasks.md"


def test_every_official_task_has_its_row_and_its_folder():
    """In the order of `TASKS`."""
    table = TASKS_PAGE[TASKS_PAGE.index("## Official benchmarks") : TASKS_PAGE.index("## The folders")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == OFFICIAL
    sections = re.split(r"^### ", TASKS_PAGE[TASKS_PAGE.index("## The folders") :], flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == OFFICIAL
    for name, section in zip(OFFICIAL, sections, strict=True):
        assert any(file in section for file in TASKS[name].benchmark.files), f"the files of {name}"


def test_every_metric_and_default_is_named():
    assert [name for name in METRICS if f"`{name}`" not in ADD_A_TASK] == []
    own = {name for name in vars(Task) if name in Task.__annotations__}
    assert own - set(re.findall(r"^\| `(\w+)` \| ", ADD_A_TASK, re.MULTILINE)) == set()


def test_parsers_read_what_the_table_says():
    heading, *rows = re.findall(r"^\| (?:\| `D|`\w+_letter` ).*\|$", ADD_A_TASK, re.MULTILINE)
    answers, choices = re.findall(r"`([^`]+)`", heading), re.findall(r"`([A-D]\. [^`]+)`", ADD_A_TASK)[:4]
    found = {}
    for row in rows:
        parser, *read = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        found[parser] = read
        assert read == [getattr(letters, parser)(answer, choices) for answer in answers], parser
    assert found.keys() == {name for name in vars(letters) if name.endswith("_letter")}

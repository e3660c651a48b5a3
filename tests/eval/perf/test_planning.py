"""The largest batch: its search, a tiny model on 8 virtual CPU devices, the file of rows and users' mistakes."""

import dataclasses
import json

import pytest

from eval.perf.largest import Largest, largest_fitting
from eval.perf.planning import Case, Row, main, markdown, read_rows
from tests.docs.pages import ROOT

SMALL = ["--models", "tiny", "--topologies", "cpu:8", "--contexts", "128", "--steps", "2", "--budgets", "0.75"]


@pytest.mark.parametrize("nothing", [0, 90, 100])
@pytest.mark.parametrize(
    ("room", "largest"), [(99, 0), (109, 0), (110, 1), (150, 5), (1105, 100), (1110, 101), (3000, 200)]
)
def test_search_along_a_line(room, largest, nothing):
    asked = []

    def needs(number: int) -> int:
        asked.append(number)
        return 100 + 10 * number

    assert largest_fitting(needs, room, nothing, 200) == largest
    assert len(asked) <= 7 and (largest == 0 or largest in asked)


@pytest.mark.parametrize("room", range(1100, 3000, 97))
def test_search_along_steps(room):
    """Sizes are padded, so the line is only near."""

    def needs(number: int) -> int:
        return 1000 + 8 * -(-number // 8) * 10 + number

    found = largest_fitting(needs, room, 1000, 300)
    assert needs(found) <= room if found else needs(1) > room
    assert needs(found + 9) > room  # at most one step below


def test_nothing_is_asked_where_nothing_can_fit():
    assert largest_fitting(lambda number: pytest.fail("asked"), 1000, 100, 0) == 0


def row(policy: str, context: int, batch: int) -> Row:
    case = Case("tiny", "v5e:4x4", "data=4,tensor=4", context, policy, 1.0 if policy == "full" else 0.2, 64, 2**34)
    found = Largest(batch, "decode", 2**30, 2**32, 3 * 2**20, 5, 1.5)
    return Row(case, 2**29, 2**28, found, "0.10.2")


def test_table():
    lines = markdown([row("full", 8192, 100), row("snapkv", 8192, 450), row("full", 20480, 0)]).splitlines()
    assert lines[0] == "## tiny"
    assert lines[4:7] == [
        "| v5e:4x4 | data=4,tensor=4 | 8,192 | full | 0.50 + 0.25 | 1.00 | 3.0 | 4.00 | 100 | 1.0 | decode |",
        "| v5e:4x4 | data=4,tensor=4 | 8,192 | snapkv 0.2 | 0.50 + 0.25 | 1.00 | 3.0 | 4.00 | 450 | 4.5 | decode |",
        "| v5e:4x4 | data=4,tensor=4 | 20,480 | full | 0.50 + 0.25 | 1.00 | 3.0 | 4.00 | 0 |  | decode |",
    ]


@pytest.mark.complete
def test_a_tiny_model(tmp_path, capsys):
    """Found rows are kept, and the same command compiles only what is missing."""
    out = tmp_path / "rows.json"
    arguments = [*SMALL, "--memory", "0.004", "--out", str(out)]
    assert main([*arguments, "--policies", "full"]) == 0
    capsys.readouterr()
    assert main([*arguments, "--policies", "snapkv"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and "tiny, cpu:8, 128 tokens, snapkv 0.75:" in shown.err
    full, pruned = read_rows(out)
    assert (full.case.policy, pruned.case.policy) == ("full", "snapkv")
    assert 0 < full.largest.batch < pruned.largest.batch
    for one in (full, pruned):
        found, rows = one.largest, one.largest.batch // 4
        assert found.limit == "decode" and found.batch % 4 == 0
        assert one.weights + rows * found.row <= found.decode <= one.case.memory - one.towers
        assert found.decode + 2 * found.row > one.case.memory - one.towers
    assert markdown([full, pruned]) in shown.out


def test_published_table_is_of_the_published_rows():
    rows = read_rows(ROOT / "docs" / "planning.json")
    assert rows and markdown(rows).strip() in (ROOT / "docs" / "planning.md").read_text()


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.json"
    assert read_rows(path) == []
    rows = [row("full", 8192, 100), row("snapkv", 8192, 450)]
    path.write_text(json.dumps([dataclasses.asdict(one) for one in rows]))
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "gpt2", "--memory", "1"], "Unknown model 'gpt2'"),
        (["--topologies", "cpu:8"], "The memory of cpu:8 is not known; give --memory in GiB."),
        (["--contexts", "32768", "--memory", "1"], "both together at most 4096 for tiny, not 32768 and 2."),
        (["--contexts"], "--models, --topologies and --contexts need at least one value each."),
        (["--policies", "lru", "--memory", "1"], "unknown policy 'lru'"),
        (["--budgets", "0.1", "--memory", "1"], "Policy acckv_plus: budget 0.1 keeps 13 of the 128 prompt tokens"),
        (["--out", "nowhere/rows.json"], "There is no folder nowhere"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", '[{"case": {}}]'])
def test_another_file_is_left_alone(text, capsys, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert main([*SMALL, "--memory", "1", "--out", str(path)]) == 2
    assert "holds no rows of eval.perf.planning" in capsys.readouterr().err and path.read_text() == text

"""eval.benchmark: nothing is lost or asked twice when a run is killed, and users' mistakes are one sentence each."""

import dataclasses
import functools
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console

from eval import benchmark, results
from eval.benchmark import Options, main, measure, print_summary, run, summary
from eval.held_back import Padding
from eval.metrics import METRICS
from eval.tasks.registry import TASKS
from models.errors import UserError
from tests.eval.tasks.letters import BROKEN, Letters
from tests.tiers import quick_first, quick_only

POLICIES = ("snapkv", "protected(h2o):first=2,last=2")
BUDGETS = ("0.5", "24")


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(TASKS, "letters", Letters)


def options(**changes):
    return Options(**({"task": "letters", "policies": POLICIES, "budgets": BUDGETS, "examples": 3} | changes))


def ask(path, task=None, **changes):
    task = task or Letters()
    return measure(options(**changes), path, lambda *_: task)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run that nothing disturbed, with the example that cannot be read."""
    path = tmp_path_factory.mktemp("whole") / "letters.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "letters", Letters)
        ask(path, first=int(BROKEN) - 1)
    return path


def test_one_line_per_example_policy_budget_and_question(whole):
    about, *rows = lines(whole)
    assert (about["task"], about["model"], about["metric"]) == ("letters", "smolav", "word_error_rate")
    answers = [row for row in rows if "error" not in row]
    keys = [tuple(row[name] for name in ("example", "policy", "budget", "question")) for row in answers]
    variants = [("full", 1.0), *((policy, budget) for policy in POLICIES for budget in (0.5, 24))]
    assert keys == [(id, *variant, n) for id in ("11", "13") for variant in variants for n in (1, 2, 3, 4)]
    assert [row for row in rows if "error" in row] == [{"example": BROKEN, "error": "The text is broken."}]
    assert [row["turn"] for row in rows[:4]] == [1, 2, 1, 2]
    assert [row["group"] for row in rows[:4]] == ["what", "where", "where", "what"]
    for row in answers:
        assert row["score"] == METRICS["word_error_rate"](row["answer"], row["references"])
    assert len({row["answer"] for row in answers}) > 3  # policies and questions differ
    sizes = {(row["policy"], row["budget"]): row["bytes"] for row in answers}
    assert all(0 < sizes[policy, 0.5] < 0.6 * sizes["full", 1.0] for policy in POLICIES)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_continues_without_losing_or_repeating_an_answer(whole, tmp_path, seed):
    """Wherever the file ends. The answers of the continued run are those of an undisturbed one."""
    rng, content = np.random.default_rng(seed), whole.read_bytes()
    path = tmp_path / "letters.jsonl"
    for _ in range(3):  # killed again and again
        path.write_bytes(content[: rng.integers(len(content))])
        kept = path.read_bytes()
        kept = kept[: kept.rfind(b"\n") + 1]
        task = Letters()
        ask(path, task, first=int(BROKEN) - 1)
        assert path.read_bytes() == content
        done = [id for id in ("11", "13") if kept.count(f'"example": "{id}"'.encode()) == 20]
        assert task.read == [id for id in ("11", BROKEN, "13") if id not in done]


def test_a_policy_with_a_second_pass_is_asked_as_others_are(tmp_path):
    path = tmp_path / "letters.jsonl"
    found = ask(path, policies=("kvzip", "knorm"), budgets=("24",), examples=1)
    answers = [row for row in lines(path)[1:] if row["policy"] == "kvzip"]
    assert len(answers) == 4 and len({row["answer"] for row in answers}) > 1
    assert [v.policy for v in found.variants] == ["full", "kvzip", "knorm"]


def test_a_finished_run_asks_nothing_but_what_could_not_be_asked_and_more_is_added(whole, tmp_path):
    path, changes = tmp_path / "letters.jsonl", {"first": int(BROKEN) - 1}
    before = summary(ask(path, **changes, budgets=BUDGETS[1:]))
    few, task = path.read_bytes(), Letters()
    ask(path, task, **changes, budgets=BUDGETS[1:])
    assert (task.read, path.read_bytes()) == ([BROKEN], few)
    ask(path, task, **changes)
    assert task.read == [BROKEN, "11", BROKEN, "13"] and path.read_bytes().startswith(few)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert summary(ask(path, **changes, budgets=BUDGETS[1:])) == before  # other budgets of the file do not count


def test_policies_with_budgets_of_their_own_read_an_example_once(whole, tmp_path):
    path, task = tmp_path / "letters.jsonl", Letters()
    first = int(BROKEN) - 1
    found = measure(
        options(policies=POLICIES[:1], first=first), path, lambda *_: task, also=[(POLICIES[1:], BUDGETS[1:])]
    )
    assert [(v.policy, v.budget) for v in found.variants[1:]] == [
        *((POLICIES[0], budget) for budget in BUDGETS),
        (POLICIES[1], BUDGETS[1]),
    ]
    assert task.read == ["11", BROKEN, "13"]
    assert set(path.read_bytes().splitlines()) < set(whole.read_bytes().splitlines())


@dataclasses.dataclass(frozen=True)
class Moody(Letters):
    """The text that is broken elsewhere says what `mood` does, and is whole without any."""

    mood: str | None = None

    def example(self, id):
        if self.mood is not None and id == BROKEN:
            raise UserError(self.mood)
        return super().example("0" if id == BROKEN else id)


def test_what_could_not_be_asked_is_asked_again(tmp_path):
    """Its answers take the place of the error, and an error that of another."""
    path, changes = tmp_path / "letters.jsonl", {"first": int(BROKEN) - 1, "policies": ("snapkv",), "budgets": ("24",)}
    for mood in ("It is missing.", "It is missing.", "It is empty."):
        assert summary(ask(path, Moody(mood=mood), **changes))["errors"] == {BROKEN: mood}
    assert [row["error"] for row in lines(path)[1:] if "error" in row] == ["It is missing.", "It is empty."]
    mended = summary(ask(path, Moody(), **changes))
    assert mended == summary(ask(tmp_path / "other.jsonl", Moody(), **changes))
    assert (mended["examples"], mended["errors"]) == (3, {})
    found = [line for line in path.read_bytes().splitlines() if b'"error"' not in line]
    assert sorted(found) == sorted((tmp_path / "other.jsonl").read_bytes().splitlines())


def test_an_error_under_one_policy_is_none_of_the_others(tmp_path):
    path, changes = tmp_path / "letters.jsonl", {"first": int(BROKEN), "examples": 1}
    before = summary(ask(path, Moody(), policies=("knorm",), **changes))
    with pytest.raises(UserError, match="None of the 1 examples can be asked"):
        ask(path, Moody(mood="It is missing."), policies=("tova",), **changes)
    assert summary(ask(path, Moody(mood="It is missing."), policies=("knorm",), **changes)) == before


def test_a_run_that_fails_before_it_asks_leaves_no_answers_of_other_data(tmp_path):
    def fail(*_):
        raise UserError("There is no such folder.")

    path = tmp_path / "letters.jsonl"
    with pytest.raises(UserError, match="There is no such folder"):
        measure(options(data=tmp_path / "wrong"), path, fail)
    assert path.read_bytes() == b""
    ask(path, data=tmp_path / "right", examples=1)
    assert lines(path)[0]["data"] == f"{tmp_path}/right"


def test_turns_and_groups_are_apart(whole):
    result = summary(ask(whole, first=int(BROKEN) - 1))
    assert [(row["policy"], row["budget"], row["turn"]) for row in result["rows"]][:3] == [
        ("full", 1.0, 1),
        ("full", 1.0, 2),
        ("snapkv", 0.5, 1),
    ]
    assert (result["examples"], result["errors"]) == (2, {BROKEN: "The text is broken."})
    rows = [row for row in lines(whole) if row.get("policy") == "snapkv" and row["budget"] == 24 and row["turn"] == 2]
    [found] = [r for r in result["rows"] if (r["policy"], r["budget"], r["turn"]) == ("snapkv", 24, 2)]
    scores = np.array([row["score"] for row in rows]).reshape(2, 2)  # by example
    assert found["all"]["asked"] == 4 and found["groups"]["where"]["asked"] == 2
    np.testing.assert_allclose(found["all"]["score"], scores.mean(), atol=1e-4)
    spread = 12.7062 * scores.mean(1).std(ddof=1) / 2**0.5  # Student's t with one degree of freedom
    np.testing.assert_allclose(found["all"]["half_width"], spread, atol=1e-3)


def test_an_interval_counts_examples_and_not_questions():
    row = functools.partial(dict, group="what")
    rows = [row(example="a", score=s) for s in (1, 1, 1)] + [row(example="b", score=0.0)]
    found = benchmark._mean(rows)
    assert (found["asked"], found["score"]) == (4, 0.75)
    # Residuals 3 - 3 * 0.75 and 0 - 0.75, over 2 questions an example; their spread times t over the root of 2.
    np.testing.assert_allclose(found["half_width"], 12.7062 * np.std([0.375, -0.375], ddof=1) / 2**0.5, atol=1e-3)
    assert benchmark._mean(rows[:3])["half_width"] is None
    assert benchmark._mean([]) == {"asked": 0, "score": None, "half_width": None}


@dataclasses.dataclass(frozen=True)
class OneByOne(Letters):
    padding = Padding(prefix=(64,), question=16, rows=1)


@dataclasses.dataclass(frozen=True)
class ThreeRows(Letters):
    padding = Padding(prefix=(64,), question=16, rows=3)


@dataclasses.dataclass(frozen=True)
class FourCaches(Letters):
    padding = Padding(prefix=(64,), question=16, rows=1, caches=4)


@pytest.mark.parametrize("kind", quick_only((OneByOne, ThreeRows, FourCaches), (FourCaches,)))
def test_conversations_answer_alike_however_many_run_at_once(whole, tmp_path, kind):
    ask(tmp_path / "letters.jsonl", kind(), first=int(BROKEN) - 1)
    found, expected = ((path).read_bytes().splitlines() for path in (tmp_path / "letters.jsonl", whole))
    assert sorted(found) == sorted(expected)


def test_many_groups_or_figures_are_rows():
    cell = {"asked": 4, "score": 0.5, "half_width": 0.1}
    row = {"policy": "full", "budget": 1.0, "turn": 1, "all": cell}
    about = {"task": "letters", "metric": "word_error_rate", "examples": 4}

    def shown(groups):
        console = Console(file=io.StringIO(), width=200)
        print_summary(console, about | {"rows": [row | {"groups": groups, "all": next(iter(groups.values()))}]})
        return [line.split() for line in re.sub("[│┃]", " ", console.file.getvalue()).splitlines()]

    tall = shown(dict.fromkeys([f"g{number}" for number in range(9)], cell))
    assert ["full", "1.0", "1", "g0", "4", "0.500", "±", "0.100"] in tall
    assert [line[0] for line in tall if line[1:] == ["4", "0.500", "±", "0.100"]] == [
        *map("g{}".format, range(1, 9)),
        "all",
    ]
    wide = shown({"yes": cell | {"f1": 0.25}, "no": {"asked": 0, "score": None, "half_width": None}})
    assert ["policy", "budget", "turn", "group", "asked", "word", "error", "rate", "f1"] in [x[:9] for x in wide]
    assert ["full", "1.0", "1", "yes", "4", "0.500", "±", "0.100", "0.250"] in wide
    assert ["no", "0", "-", "-"] in wide


def test_first_tokens_come_from_the_pruned_cache(whole):
    """Not from the prefill, whose logits would be the full cache's under every policy."""
    answers = [row for row in lines(whole)[1:] if "error" not in row and row["turn"] == 1]
    firsts = {budget: [row["answer"][0] for row in answers if row["budget"] == budget] for budget in (1.0, 24)}
    assert len(set(firsts[24]) - set(firsts[1.0])) > 0


def test_the_command_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--task", "letters", "--policies", *POLICIES, "--budgets", *BUDGETS, "--examples", "3"]
    assert main([*asked, "--first", "11", "--out", "out.json"]) == 0
    shown = capsys.readouterr()
    assert "3 examples" not in shown.out and "2 examples of letters: word error rate" in shown.out
    assert "protected(h2o):first=2,last=2" in shown.out
    assert "example 12 is left out: The text is broken." in shown.err
    result = json.loads((tmp_path / "out.json").read_text())
    assert len(result["rows"]) == 10 and len(lines(tmp_path / "letters.jsonl")) == 1 + 2 * 5 * 4 + 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "poems"], "Unknown task 'poems'; choose one of clips, long_clips, clips_full, "),
        (["--policies", "lru"], "unknown policy 'lru'; choose one of full,"),
        (["--policies", "protected(lru)"], "unknown policy 'lru'"),
        (["--policies", "snapkv:speed=9"], "Policy snapkv has no option 'speed'"),
        (["--budgets", "1.5"], "budget 1.5 is no fraction"),
        (["--budgets", "some"], "Budget 'some' is no number; give a fraction such as 0.2"),
        (["--policies", "snapkv", "--budgets", "3"], "Example 0: Policy snapkv at budget 3: budget 3 keeps 3 of the"),
        (["--examples", "0"], "--examples must be at least 1"),
        (["--by", "length", "--policies", "full"], "--by length: there is no such label; answers have none."),
        (["--first", "20"], "Task letters has 20 examples, and --first 20 is none."),
        (["--first", BROKEN, "--examples", "1"], "None of the 1 examples can be asked."),
        (["--answers", "nowhere/x.jsonl"], "There is no folder nowhere to write x.jsonl into; make it first."),
        (["--out", "nowhere/x.json"], "There is no folder nowhere"),
        (
            ["--task", "clips_full", "--policies", "snapkv"],
            "This task asks the full cache alone; leave out --policies.",
        ),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--task", "letters", "--examples", "2", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err and shown.out == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"my notes", "holds no answers of a benchmark; name another file."),
        (b"my notes\nmore\n", "holds no answers of a benchmark"),
        (b'{"task": "clips"}\n', "holds answers of task clips, not letters; name another file."),
        (b'{"task": "letters", "model": "other"}\n', "holds answers of model other, not smolav"),
        (None, "Line 3 of letters.jsonl is no answer; delete it, and its question will be asked again."),
    ],
)
def test_other_files_are_refused_and_stay_as_they_are(content, sentence, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is None:
        about, first, _, *others = whole.read_bytes().splitlines(keepends=True)
        content = b"".join([about, first, b'{"exam\n', *others])
    path = tmp_path / "letters.jsonl"
    path.write_bytes(content)
    assert main(["--task", "letters", "--examples", "1"]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown and shown.count("\n") == 1
    assert path.read_bytes() == content


def test_two_runs_do_not_share_a_file(tmp_path):
    path = tmp_path / "letters.jsonl"
    with results.opened(path, {"task": "letters"}):
        with pytest.raises(UserError, match="Another run is writing to"):
            ask(path)


def test_a_conversation_too_long_for_the_model_is_left_out(monkeypatch, tmp_path):
    task = Letters()
    monkeypatch.setattr(task.model, "max_context", 64 + 2 * 12 + 4)
    with pytest.raises(UserError, match="None of the 1"):
        monkeypatch.setattr(task.model, "max_context", 40)
        ask(tmp_path / "letters.jsonl", task, examples=1)
    assert "the model can tell 40 apart" in lines(tmp_path / "letters.jsonl")[1]["error"]


def limit(size):
    """No file of this process may become larger, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize("size", quick_first((3000, 10, 400, 6001)))
def test_a_full_disk_ends_the_run_with_a_sentence_and_it_continues(size, whole, tmp_path, monkeypatch, capsys):
    """Whole lines alone stay in the file, and what was not written is asked again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "letters", Letters)
    asked = ["--task", "letters", "--policies", *POLICIES, "--budgets", *BUDGETS, "--first", "11", "--examples", "3"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        limit(size)
        assert main(asked) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    shown = capsys.readouterr()
    assert "letters.jsonl: File too large; raise the limit" in shown.err.splitlines()[-1] and shown.out == ""
    kept = (tmp_path / "letters.jsonl").read_bytes()
    assert len(kept) <= size and (not kept or kept.endswith(b"\n"))
    assert kept.count(b'"error"') <= 1  # of the example that cannot be read; no other is blamed for the disk
    assert main(asked) == 0
    assert (tmp_path / "letters.jsonl").read_bytes() == whole.read_bytes()


def test_a_summary_that_cannot_be_written(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letters.jsonl").write_bytes(whole.read_bytes())
    asked = ["--task", "letters", "--policies", "snapkv", "--budgets", *BUDGETS, "--first", "11", "--examples", "3"]
    assert main([*asked, "--out", "/dev/full"]) == 2
    sentence = "error: /dev/full: No space left on device; make room there, or name another place."
    assert capsys.readouterr().err.splitlines()[-1] == sentence
    assert main([*asked, "--answers", "/dev/full"]) == 2
    assert "/dev/full is no file that a later run could continue" in capsys.readouterr().err


@pytest.mark.complete
@pytest.mark.packaging
def test_kill_9(tmp_path):
    """A real process, killed while it writes."""
    program = (
        "import sys; from tests.eval.tasks.letters import Letters; from eval.tasks.registry import TASKS; "
        "TASKS['letters'] = Letters; from eval.benchmark import main; sys.exit(main(sys.argv[1:]))"
    )
    asked = ["--task", "letters", "--policies", *POLICIES, "--budgets", *BUDGETS, "--examples", "20"]
    command, path = [sys.executable, "-c", program, *asked, "--answers"], tmp_path / "killed.jsonl"
    subprocess.run([*command, tmp_path / "whole.jsonl"], check=True, capture_output=True)
    process = subprocess.Popen([*command, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not path.exists() or path.stat().st_size < 6000):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 6000 <= path.stat().st_size < (tmp_path / "whole.jsonl").stat().st_size
    subprocess.run([*command, path], check=True, capture_output=True)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_run_uses_the_tasks_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(examples=1, policies=("full",)), lambda *_: Letters())
    assert len(lines(tmp_path / "letters.jsonl")) == 1 + 4

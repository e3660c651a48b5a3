"""Every command of the pages is one that there is, and a test runs it at smoke size, or the page says what it needs.

A command on a page needs one of: its program in `SMOKE`, its text in `OTHERS`, or a mark in the page, directly above
the block or paragraph: `<!-- needs: cloud account -->`, or another of `NEEDS`.
"""

import argparse
import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from typing import Any, NoReturn

import pytest
import tyro

from tests.docs.commands import NEEDS, Command, all_commands, calls, commands, split
from tests.docs.pages import ROOT

SMOKE = {
    "eval.accuracy": "tests/eval/test_accuracy.py::test_every_question_of_every_clip_is_answered_once",
    "eval.answer": "tests/eval/test_answer.py::test_json_is_one_object_with_all_fields",
    "eval.answer --batch": "tests/eval/test_many.py::test_batches_answer_as_single_runs_do_and_a_killed_run_goes_on",
    "eval.answer --compare": "tests/eval/test_answer.py::test_table_compares_all_policies",
    "eval.answer --model": "tests/models/qwen2_5_omni/test_model.py::test_the_default_policy_answers",
    "eval.benchmark": "tests/eval/test_benchmark.py::test_the_command_prints_a_table_and_writes_json",
    "eval.scoreboard": "tests/eval/scoreboard/test_scoreboard.py::test_files",
    "eval.mergenet": "tests/eval/test_mergenet.py::test_an_experiment_from_start_to_table",
    "eval.mergenet_smolav": "tests/eval/test_mergenet_smolav.py::test_what_is_there_is_not_run_again",
    "eval.perf.aot": "tests/eval/perf/test_aot.py::test_programs_of_a_tiny_model",
    "eval.perf.beside_kvpress": "tests/eval/perf/test_beside_kvpress.py::test_full_caches_answer_as_none",
    "eval.perf.column_sums": "tests/eval/perf/test_column_sums.py::test_table",
    "eval.perf.compile": "tests/eval/perf/test_compile.py::test_all_programs_of_a_policy",
    "eval.perf.decode": "tests/eval/perf/test_decode.py::test_rows",
    "eval.perf.gpu": "tests/docs/test_commands.py::test_rehearsal_of_the_gpu",
    "eval.perf.planning": "tests/eval/perf/test_planning.py::test_a_tiny_model",
    "eval.perf.loading": "tests/eval/perf/test_loading.py::test_table",
    "eval.perf.mergenet": "tests/eval/perf/test_mergenet.py::test_times",
    "eval.perf.mergenet --topology": "tests/eval/perf/test_mergenet.py::test_memory",
    "eval.perf.throughput": "tests/eval/perf/test_throughput.py::test_rows",
    "eval.retention": "tests/eval/test_retention.py::test_the_page_shows_the_clip_and_every_policy",
    "models.hub.weights": "tests/models/hub/test_weights.py::test_command",
    "sphinx": "tests/docs/test_site.py::test_pages_are_there",
    "tests.fuzz_media": "tests/test_fuzz_media.py::test_damaged_clips_are_read_or_refused",
    "tests.kill_training": "tests/test_kill_training.py::test_kills_within_saves_cost_no_whole_checkpoint",
    "train.data.av_compose_tfds": "tests/train/data/test_av_compose.py::test_what_is_prepared_is_what_is_composed",
    "train.data.sources.pack_digits": "tests/train/data/test_sources.py::test_packing_digits",
    "train.export": "tests/train/test_export.py::test_written_anew",
    "train.export --workdir": "tests/train/smolav/test_main.py::test_a_trained_model_is_exported_as_it_was_trained",
    "train.mergenet": "tests/train/mergenet/test_loop.py::test_a_finished_run_is_told_and_exported",
    "train.mergenet --help": "tests/docs/test_commands.py::test_help_of_a_recipe",
    "train.mergenet --smoke": "tests/docs/test_commands.py::test_smoke_run_of_a_recipe",
    "train.smolav": "tests/train/smolav/test_main.py::test_a_trained_model_is_exported_as_it_was_trained",
    "train.smolav.demo_clip": "tests/train/smolav/test_demo_clip.py::test_the_clip_is_built_again",
}
"""The test that runs a program at smoke size; one that runs it with an option stands apart."""

OTHERS = {
    "examples/two_processes.sh": "tests/eval/test_processes.py::test_the_example_of_two_processes",
    "pip install jax flatbuffers safetensors": "tests/train/exports/test_stablehlo.py",
    "python run_exported.py FOLDER prompt.safetensors": "tests/train/exports/test_stablehlo.py",
    "pip install .": "tests/test_wheel.py",
    "python3.11 -m venv .venv && .venv/bin/pip install -e '.[run]' && .venv/bin/python -m eval.answer": (
        "tests/docs/test_commands.py::test_readmes_command"
    ),
    "ruff check": ".github/workflows/ci.yml",
    "ruff check && ruff format --check && pyright": ".github/workflows/ci.yml",
    "source .venv/bin/activate && pre-commit install": ".pre-commit-config.yaml",
}
"""The test, or CI's file, that runs a command which is no single Python program."""

YOURS = {"python -m pytest tests/models/tiny", 'python -m pytest tests/acckv_jax -k keydiff -m ""'}
"""Tests that the page's reader writes."""

COMMANDS = all_commands()
PROGRAMS = sorted({name for command in COMMANDS for name, _ in calls(command)} - {"venv", "pytest"})
OURS = [name for name in PROGRAMS if name.split(".")[0] in ("models", "train", "eval", "tests")]


def runner(command: Command) -> str | None:
    """What runs a command: a test or a file; "" if rules of this file check it; None if nothing does."""
    if command.text in OTHERS:
        return OTHERS[command.text]
    if "pytest" in (words := shlex.split(command.text)) or ".venv/bin/pytest" in words or _installs(command.text):
        return ""
    if found := [SMOKE.get(name) for name, _ in calls(command)]:
        return None if None in found else found[0]
    return None


def _installs(text: str) -> bool:
    ours = r"-e '\.\[[\w,]+\]'|'acckv-jax\[[\w,]+\]'|'jax\[k8s\]'"
    return re.fullmatch(rf"(python3\.11 -m venv \.venv && \.venv/bin/)?pip install ({ours})", text) is not None


def expanded(command: Command) -> list[str]:
    """A command for each value of its shell loops, one loop at a time."""
    loops = {name: shlex.split(values) for name, values in re.findall(r"for (\w+) in (.*?);? do", command.text)}
    rounds = [{name: values[0] for name, values in loops.items()} | {n: v} for n, vs in loops.items() for v in vs]
    texts = []
    for values in rounds or [{}]:
        text = command.text
        for name, value in values.items():
            text = re.sub(rf"\${name}\b", value, text)
        texts.append(text)
    return texts


@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS}))
def test_every_command_is_run_by_a_test_or_marked(page):
    alone = [one.text for one in COMMANDS if one.page == page and one.needs is None and runner(one) is None]
    assert alone == [], f"add each to SMOKE or OTHERS in {__name__}, or mark its block in the page; see there"


@pytest.mark.parametrize("name", sorted({*SMOKE, *OTHERS}))
def test_what_runs_it_is_there(name):
    path, _, test = {**SMOKE, **OTHERS}[name].partition("::")
    text = (ROOT / path).read_text()
    if test:
        assert test in {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    if path.startswith("tests/") and name in SMOKE:  # and it has to do with the program
        program = name.split(" ")[0]
        package, _, module = program.rpartition(".")
        assert re.search(rf"\b{re.escape(program)}\b|from {package} import .*\b{module}\b", text), path
    elif not path.startswith("tests/"):
        assert all(word in text for word in ("ruff", "pyright"))


def test_nothing_is_listed_that_no_page_has():
    texts, used = (
        {command.text for command in COMMANDS},
        {(n, word) for c in COMMANDS for n, a in calls(c) for word in a},
    )
    assert OTHERS.keys() | YOURS <= texts
    assert {name for name in SMOKE if " " not in name} == set(PROGRAMS)
    assert {tuple(name.split(" ")) for name in SMOKE if " " in name} <= used


class Parsed(BaseException):
    """The options were read; the program goes no further."""


@pytest.mark.parametrize("program", OURS)
def test_options_are_those_of_the_program(program, monkeypatch):
    asked = [text for c in COMMANDS for text in expanded(c) for name, _ in calls(c) if name == program]
    for text in asked:
        for arguments in [a for name, a in calls(Command("", text)) if name == program]:
            _parse(program, arguments, text, monkeypatch)


def _parse(program: str, arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads a command's options as its program does, and runs nothing."""

    def reading(read: Any) -> Any:
        def stop(*args: Any, **more: Any) -> NoReturn:
            read(*args, **more)
            raise Parsed

        return stop

    package = importlib.util.find_spec(program).submodule_search_locations is not None
    module = importlib.import_module(f"{program}.__main__" if package else program)
    if not hasattr(module, "main"):
        assert arguments == [], text
        return
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(tyro, "cli", reading(tyro.cli))
        patch.setattr(argparse.ArgumentParser, "parse_args", reading(argparse.ArgumentParser.parse_args))
        with pytest.raises((Parsed, SystemExit)) as ended:
            module.main()
    assert isinstance(ended.value, Parsed) or ended.value.code == 0, f"{text}: its program does not take these options"


def test_pytest_is_given_what_there_is():
    asked = [text for c in COMMANDS for text in expanded(c) if "pytest" in text and text not in YOURS]
    paths = [word for text in asked for word in shlex.split(text) if word.startswith("tests/")]
    assert paths and [path for path in paths if not (ROOT / path).exists()] == []


def test_extras_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for c in COMMANDS for found in re.findall(r"'\.\[([\w,]+)\]'", c.text) for extra in found.split(",")}
    assert named and named <= extras.keys()


@pytest.mark.parametrize("tier", ["quick", "complete"])
def test_ci_runs_readmes_lines(tier):
    """The lines that .ci/run takes out of README.md."""
    script = (ROOT / ".ci/run").read_text()
    options = re.search(rf"^{tier}\) options='(.*)' ;;$", script, re.MULTILINE)[1]
    pattern = re.compile(rf"^python3\.11 -m venv \.venv .* -m pytest {options}$", re.MULTILINE)
    line = pattern.search((ROOT / "README.md").read_text())[0]
    assert (tier == "complete") == line.endswith('-m ""') == ("docs" in line)


def test_commands_are_found():
    page = """
Text with `python -m eval.answer CLIP
"What?"`, and `not a command`, `pytest`, `x.py`.

<!-- needs: gpu -->
```bash
A=1 python -m one \\
    --two   # three
for x in a b; do
  python -m four --five $x
done
```

```bash
echo 'a
b' && ruff check
```
```python
# python -m six
```
<!-- needs: hours -->
Says `python3 -m seven --eight`.
"""
    found = [(one.text, one.needs) for one in commands("page", page)]
    assert found == [
        ('python -m eval.answer CLIP "What?"', None),
        ("A=1 python -m one --two", "gpu"),
        ("for x in a b; do; python -m four --five $x; done", "gpu"),
        ("echo 'a b' && ruff check", None),
        ("python3 -m seven --eight", "hours"),
    ]
    assert calls(Command("page", found[1][0])) == [("one", ["--two"])]
    assert len(expanded(Command("page", found[2][0]))) == 2
    assert split("$ python -m one  # two") == ["python -m one"]
    with pytest.raises(ValueError, match="needs: patience' is none of " + ", ".join(NEEDS)):
        commands("page", "<!-- needs: patience -->")


def test_a_new_command_is_not_overlooked():
    for text in ("python -m eval.never --there", "gcloud compute tpus list", "kubectl apply -f job.yaml"):
        (found,) = commands("page", f"```bash\n{text}\n```")
        assert runner(found) is None
        (found,) = commands("page", f"Try `{text}`.")
        assert runner(found) is None


# Commands run as they stand on the page.


def on_page(start: str) -> str:
    """The one command of the pages that begins so."""
    (text,) = {command.text for command in COMMANDS if command.text.startswith(start)}
    return text


def shell(text: str, folder: Any) -> str:
    """Runs a command of a page in a folder; returns what it printed."""
    python = shlex.quote(sys.executable)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = re.sub(r"(^|\s)python -m", rf"\1{python} -m", text)
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.complete
@pytest.mark.packaging
def test_readmes_command(tmp_path):
    shutil.copy(ROOT / "models/smolav/demo/demo.mp4", tmp_path / "clip.mp4")
    assert "cat" in shell(on_page("python -m eval.answer clip.mp4"), tmp_path)


@pytest.mark.complete
@pytest.mark.packaging
def test_rehearsal_of_the_gpu(tmp_path):
    assert "tokens/s" in shell(on_page("JAX_PLATFORMS=cpu python -m eval.perf.gpu") + " --skip-checks", tmp_path)


@pytest.mark.complete
@pytest.mark.packaging
def test_help_of_a_recipe(tmp_path):
    assert "--merge.cycle" in shell(on_page("python -m train.mergenet --recipe mergenet_cifar10 --help"), tmp_path)


@pytest.mark.complete
@pytest.mark.packaging
def test_smoke_run_of_a_recipe(tmp_path):
    shell(on_page("python -m train.mergenet --recipe mergenet_cifar10 --smoke"), tmp_path)
    assert (tmp_path / "runs/smoke/result.json").is_file()

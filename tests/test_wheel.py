"""The wheel, installed where nothing else of this checkout is in reach, runs both libraries' quick starts."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("acckv_jax", "mergenet_jax")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
ISOLATED = ("-E", "-s")  # neither PYTHON* variables nor the user's site-packages
REPORT = """
import importlib.util, json, acckv_jax, mergenet_jax
ours = ["models", "train", "eval", "tests", "torch", "transformers"]
found = [name for name in ours if importlib.util.find_spec(name)]
print(json.dumps([[acckv_jax.__file__, mergenet_jax.__file__], found]))
"""


pytestmark = pytest.mark.packaging


def run(*command: object, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def requirements(lines: list[str], extras: set[str]) -> list[Requirement]:
    """Those of the requirement lines that hold on this machine with any of `extras`."""
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras | {""})]


def closure(lines: list[str]) -> set[str]:
    """Names of the installed distributions that the requirement lines need, directly or through others."""
    seen: dict[str, set[str]] = {}
    todo = requirements(lines, set())
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen and requirement.extras <= seen[name]:
            continue
        seen[name] = seen.get(name, set()) | requirement.extras
        todo += requirements(distribution(name).requires or [], seen[name])
    return set(seen)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.iterdir()
    return wheel


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment's interpreter: it holds the wheel and links to what the wheel requires, no more."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=venv.parent)
    (site,) = venv.glob("lib/python*/site-packages")
    (metadata,) = site.glob("acckv_jax-*.dist-info/METADATA")
    lines = metadata.read_text().split("\n\n")[0].splitlines()
    for name in closure([line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(installed.locate_file(top))
    return python


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {*LIBRARIES, f"acckv_jax-{VERSION}.dist-info"}
    typed = {f"{library}/py.typed" for library in LIBRARIES}
    assert {*typed, f"acckv_jax-{VERSION}.dist-info/licenses/LICENSE"} <= set(names)
    sources = {p.relative_to(ROOT).as_posix() for library in LIBRARIES for p in (ROOT / library).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_only_the_wheel_and_its_requirements_are_in_reach(python, tmp_path):
    places, others = json.loads(run(python, *ISOLATED, "-c", REPORT, cwd=tmp_path))
    assert all(Path(place).is_relative_to(python.parents[1]) for place in places)
    assert others == []


@pytest.mark.complete
def test_quick_start(python, tmp_path):
    for name in ("quick_start.py", "foreign_llama.py"):
        shutil.copy(ROOT / "tests" / "acckv_jax" / name, tmp_path)
    out = run(python, *ISOLATED, "-W", "error", "quick_start.py", "acckv", "0.4", cwd=tmp_path)
    assert "acckv at 0.4:" in out and "tokens: [" in out


@pytest.mark.complete
def test_quick_start_of_mergenet(python, tmp_path):
    shutil.copy(ROOT / "tests" / "mergenet_jax" / "quick_start.py", tmp_path)
    out = run(python, *ISOLATED, "-W", "error", "quick_start.py", cwd=tmp_path)
    assert re.match(r"student 0\.\d+, transfer \{", out), out

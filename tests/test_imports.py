"""Who may import whom, read from the sources; and that no committed text names a machine's folders."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {"acckv_jax", "mergenet_jax"}
MAY_IMPORT_OF_OURS = {
    "acckv_jax": set(),
    "mergenet_jax": set(),
    "models": {"acckv_jax"},
    "train": LIBRARIES | {"models"},
    "eval": LIBRARIES | {"models", "train"},
}
EXTRAS = {"acckv_jax/checkpoint.py": ["checkpoint"]}
"""What a module of a library may import, when it is called, beside the base dependencies."""
BESIDE = {"eval/perf/beside_kvpress.py": {"kvpress"}, "eval/perf/kvpress_runs.py": {"torch", "transformers"}}
"""What the comparison with another library imports when it is called: its page has commands that install it."""
OURS = MAY_IMPORT_OF_OURS.keys() | {"tests"}
SOURCES = {path: package for package in MAY_IMPORT_OF_OURS for path in sorted((ROOT / package).rglob("*.py"))}
MACHINE_PATH = re.compile(r"(?<![\w.:/*-])/(?:work|root|home|Users|mnt|opt|var|tmp|private)\b|\.\./" + r"shared\b")


def imported(source: str, package: str) -> Iterator[str]:
    """Dotted names of all that `source`, a module directly inside `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*outer, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of(path: Path) -> set[str]:
    return set(imported(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts)))


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml names in the base dependencies and in `extras`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_reader_sees_every_form_of_import():
    source = "import a.b as c\nfrom d import e\ndef f():\n    from .g import h\n    from .. import i\n"
    assert set(imported(source, "p.q")) == {"a.b", "d.e", "p.q.g.h", "p.i"}


def test_import_direction():
    wrong = {}
    for path, package in SOURCES.items():
        ours = {module.split(".")[0] for module in imports_of(path)} & OURS
        if bad := ours - MAY_IMPORT_OF_OURS[package] - {package}:
            wrong[path] = bad
    assert not wrong
    assert {"acckv_jax", "models", "train"} <= set(SOURCES.values())


def test_third_party_imports_are_declared():
    """So neither torch nor transformers, which only the extra `reference` brings, is needed but by `BESIDE`."""
    owners = packages_distributions()
    wrong = {}
    for path, package in SOURCES.items():
        extras = EXTRAS.get(path.relative_to(ROOT).as_posix(), []) if package in LIBRARIES else ["run"]
        names = declared(*extras)
        roots = {module.split(".")[0] for module in imports_of(path)} - OURS - sys.stdlib_module_names
        roots -= BESIDE.get(path.relative_to(ROOT).as_posix(), set())
        if bad := {r for r in roots if not {canonicalize_name(d) for d in owners.get(r, [])} & names}:
            wrong[path] = bad
    assert not wrong


def test_extras_are_imported_when_they_are_needed():
    code = "import sys, acckv_jax, mergenet_jax; print({'orbax', 'tensorstore'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_no_private_jax():
    wrong = {}
    for path in [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]:
        attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        modules = {m for m in imports_of(path) if re.match(r"(jax|jaxlib|flax)\b.*\._", m)}
        if bad := modules | attributes & {"_src"}:
            wrong[path] = bad
    assert not wrong


def test_no_imports_by_name():
    """Registries are plain dicts: nothing is imported by a string."""
    wrong = {}
    for path in SOURCES:
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        modules = {m for m in imports_of(path) if re.match(r"importlib(?!\.(metadata|resources)\b)", m)}
        if bad := modules | names & {"__import__"}:
            wrong[path] = bad
    assert not wrong


def machine_paths(text: str) -> list[str]:
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_machine_paths_are_recognised():
    for bad in ("work/a", "home/me/x", "root", "tmp/x"):
        assert machine_paths(f"see /{bad}") and machine_paths(f'open("/{bad}")')
    assert machine_paths("see ../" + "shared/design")
    for good in ("models/work/a", "https://a.b/home/x", "../golden", "tests/tmp/x", "B/T", "/dev/null"):
        assert not machine_paths(good)


def test_no_machine_paths_in_committed_text():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for path in filter(None, listed.split("\0")):
        data = (ROOT / path).read_bytes()
        if b"\0" not in data and (lines := machine_paths(data.decode(errors="replace"))):
            found[path] = lines
    assert not found

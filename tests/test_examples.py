"""The scripts of examples/: bash reads them, too few arguments are told, and pages name those that exist."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "examples").rglob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_bash_reads_it(script):
    assert script.stat().st_mode & 0o111, "it is not executable"
    subprocess.run(["bash", "-n", script], check=True)
    assert script.read_text().splitlines()[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("name", ["tpu/install.sh", "tpu/run_benchmark.sh", "gke/run_benchmark.sh"])
def test_too_few_arguments(name):
    done = subprocess.run([ROOT / "examples" / name, "one"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stdout == ""


@pytest.mark.parametrize("page", ["docs/tpu/index.md", "docs/gke.md", "docs/slurm.md"])
def test_pages_name_scripts_that_exist(page):
    text = (ROOT / page).read_text()
    named = [script for script in SCRIPTS if str(script.relative_to(ROOT)) in text]
    assert named and text.count("examples/") == sum(text.count(str(path.relative_to(ROOT))) for path in paths(text))


def paths(text: str) -> list[Path]:
    """What a page may name of examples/."""
    return [path for path in (ROOT / "examples").rglob("*") if path.is_file() and str(path.relative_to(ROOT)) in text]

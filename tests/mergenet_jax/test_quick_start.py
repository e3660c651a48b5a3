"""The quick start runs as a script, and the student learns."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("quick_start.py")


def test_runs_as_a_script(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = re.match(r"student (\d\.\d+), transfer \{.*'norm'", done.stdout)
    assert found and float(found[1]) < 0.7, done.stdout  # log 4 = 1.39 before training

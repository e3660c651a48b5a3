"""The quick start runs as it stands, and the student learns; tests/test_wheel.py runs it as a script."""

import re
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("quick_start.py")


@pytest.mark.complete
def test_the_student_learns(capsys):
    runpy.run_path(str(SCRIPT))
    told = capsys.readouterr().out
    found = re.match(r"student (\d\.\d+), transfer \{.*'norm'", told)
    assert found and float(found[1]) < 0.7, told  # log 4 = 1.39 before training

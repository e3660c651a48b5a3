"""Damaged clips end in a result or a sentence."""

import subprocess
import sys

import pytest


@pytest.mark.complete
@pytest.mark.packaging
def test_damaged_clips_are_read_or_refused():
    """Forty of the files of docs/fuzz_media.md's kinds, of another seed."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_media", "--files", "40", "--seed", "1"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 of 40 files ended in a traceback, a hang or a crash." in run.stdout

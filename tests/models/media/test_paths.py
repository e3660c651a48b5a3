"""Names of clips that are no clips."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import UserError
from models.media.paths import clip_path


def test_files_folders_and_patterns_are_paths(tmp_path):
    (tmp_path / "a [dQw4].mp4").write_bytes(b"x")
    (tmp_path / "1.png").write_bytes(b"x")
    for name in (tmp_path, tmp_path / "a [dQw4].mp4", tmp_path / "*.png"):
        assert clip_path(name) == clip_path(str(name)) == name


@pytest.mark.parametrize(
    ("clip", "sentence"),
    [
        ("", "name is empty"),
        ("  ", "name is empty"),
        ("https://example.org/a.mp4", r"https://example.org/a.mp4 is a URL.*download it first"),
        (Path("https://example.org/a.mp4"), "is a URL"),
        ("What is shown in this clip, and who is heard? " * 8, "the clip comes first, then the questions"),
        ("a\0b.mp4", "No file can be called"),
        ("missing.mp4", "There is no file missing.mp4; check the path"),
        ("missing/*.png", r"There is no file missing/\*.png"),
        ("/dev/null", "is a pipe or a device"),
    ],
)
def test_other_names_are_told(clip, sentence):
    with pytest.raises(UserError, match=sentence):
        clip_path(clip)


def test_a_link_to_nothing_is_told(tmp_path):
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "moved.mp4")
    with pytest.raises(UserError, match="is a link to a file that is not there"):
        clip_path(tmp_path / "clip.mp4")


def test_a_pipe_is_told(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match="is read twice; save it as a file"):
        clip_path(tmp_path / "clip.mp4")


@pytest.mark.packaging
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_told(kind, tmp_path):
    path = tmp_path / "clip"
    path.mkdir() if kind == "folder" else path.write_bytes(b"x")
    path.chmod(0)
    code = "import os, sys; from models.media.paths import clip_path; os.getuid() or os.setuid(65534); clip_path({!r})"
    for folder in (tmp_path, *tmp_path.parents[:2]):  # root makes these for itself alone, and may read all else
        folder.chmod(0o755)
    command = [sys.executable, "-c", code.format(str(path))]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    path.chmod(0o700)
    assert "may not be read by this user; change its permissions" in done.stderr

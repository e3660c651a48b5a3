"""How commands end, where they write, and where they cannot."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from models import command, files
from models.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def ended(code: str, **options) -> subprocess.CompletedProcess:
    """A process whose command is these statements."""
    body = "".join(f"\n    {line}" for line in code.splitlines())
    program = f"import sys\nfrom pathlib import Path\nfrom models import command, files\ndef body():{body}\n"
    command = [sys.executable, "-c", program + "sys.exit(command.run(body))"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT} | options
    return subprocess.run(command, text=True, check=False, **options)


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "There is no [bold]file[/] " + "x" * 200 + "; name another."

    def fail() -> None:
        raise UserError(sentence)

    assert command.run(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")
    assert command.run(fail) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: print(1 / 0))


@pytest.mark.packaging
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 100_000])  # written at the end, and in between
def test_a_full_standard_output(lines: int, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = ended(f"for i in range({lines}): print('x' * 10)", stdout=full, env=environment)
    sentence = "error: standard output: No space left on device; make room there, or name another place.\n"
    assert (done.returncode, done.stderr) == (2, sentence)


@pytest.mark.packaging
def test_a_reader_that_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as pipe:
        done = ended("for i in range(100_000): print(i)", stdout=pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.packaging
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (path := tmp_path / "out.json").write_text("old")
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"
    done = ended(f"{limit}\nfiles.write_text(Path({str(path)!r}), 'x' * 5000)")
    sentence = f"error: {path}: File too large; raise the limit of a file's size (ulimit -f), or name another place.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out.json", "old")]


@pytest.mark.parametrize("path", [Path("/dev/full"), Path("/sys/out.json"), Path("/proc/out.json")])
def test_places_that_cannot_be_written(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(lambda: files.write_text(path, "x")) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {path}: ") and shown.endswith("name another place.\n") and shown.count("\n") == 1
    assert path.exists() == (path == Path("/dev/full"))


def test_other_errors_of_files_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        command.run(lambda: print((tmp_path / "absent").read_text()))


def test_what_is_written_takes_the_place_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (target := tmp_path / "folder" / "out.json").write_text("old")
    (link := tmp_path / "link.json").symlink_to(target)
    with target.open() as reader:
        files.write_text(link, "new")
        assert reader.read() == "old"  # whoever reads it meanwhile sees one or the other
    assert link.is_symlink() and target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["out.json"]
    with pytest.raises(ZeroDivisionError), files.replacing(target) as draft:
        draft.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "new" and [path.name for path in target.parent.iterdir()] == ["out.json"]


@pytest.mark.packaging
def test_an_output_without_permission() -> None:
    """Is refused before the work, to all but the system's administrator, who therefore is someone else here."""
    with tempfile.TemporaryDirectory() as name:  # which, unlike tmp_path, that someone may enter
        (path := Path(name, "out.json")).write_text("old")
        path.chmod(0o444)
        Path(name).chmod(0o555)
        for out in (path, Path(name, "new.json")):
            # What rich imports when it prints first may lie where only the administrator may read.
            leave = "import io, os, rich\nrich.print(':x:', file=io.StringIO())\n"
            leave += "if not os.getuid(): os.setuid(54321)\n"
            done = ended(f"{leave}command.check_output(Path({str(out)!r}))\nprint('worked')")
            place = path if out == path else name
            sentence = f"error: {place} may not be written; change its permissions, or name another place.\n"
            assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)
        Path(name).chmod(0o755)

"""Files and folders that are written whole or not at all."""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from models.errors import UserError


class NotWritten(OSError):
    """A file cannot be written: `filename`, `errno` and `strerror` say which, and why; a command says so and ends."""


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an OSError a `NotWritten` of `path`: that of a full disk names no file, and that of a draft the draft."""
    try:
        yield
    except OSError as error:
        raise NotWritten(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` to be written, which takes its name when it is on disk, and is deleted if anything fails.

    What is no file but a device or a pipe is written itself.

    Raises:
        NotWritten: if it cannot be written.
    """
    if path.exists() and not path.is_file():
        with naming(path):
            yield path
        return
    target = Path(os.path.realpath(path))  # a link stays one
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        with naming(path):
            yield draft
            _flush(draft)
            draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        NotWritten: if it cannot be written; its old content stays.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def append(file: io.FileIO, data: bytes) -> None:
    """Appends bytes to a file that was opened unbuffered ("ab", 0); where not all can be written, none stay.

    Raises:
        NotWritten: if they cannot be written.
    """
    end = file.seek(0, os.SEEK_END)
    try:
        with naming(Path(file.name)):
            while data:
                data = data[file.write(data) :]
    except NotWritten:
        with contextlib.suppress(OSError):  # a device has no end
            file.truncate(end)
        raise


def check_new_folder(folder: Path) -> None:
    """Checks that a folder can be made.

    Raises:
        UserError: if it has contents or is a file, or its parent does not exist.
    """
    folder = folder.absolute()
    if not folder.parent.is_dir():
        raise UserError(f"There is no folder {folder.parent} to make {folder.name} in; make it first.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; name a new folder, or delete it first.")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` when all is written, and is deleted if anything fails.

    Raises:
        UserError: if `folder` has contents or is a file, its parent does not exist, or it cannot be written.
    """
    check_new_folder(folder)
    folder = folder.absolute()
    with _writing(folder):
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _writing(folder):
            yield draft
            for path in filter(Path.is_file, draft.rglob("*")):
                _flush(path)
                path.chmod(0o644)  # safetensors lets no one else read
            draft.chmod(0o755)  # nor does mkdtemp
            draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{folder} cannot be written ({reason}); make room, or name another folder.") from error


def _flush(path: Path) -> None:
    """Has a file's contents written before it or its folder takes its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

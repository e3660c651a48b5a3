"""Files that are written whole or not at all."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path


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
            with draft.open("rb") as file:
                os.fsync(file.fileno())
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

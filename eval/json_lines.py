"""Files of JSON lines that grow line by line, and that a run which was killed at any moment continues."""

import contextlib
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from models.errors import UserError


class Lines:
    """An open file.

    Attributes:
        path: where it is.
        before: the whole lines that it held when it was opened.
        torn: what followed the last of them: a line that a killed run did not finish. The first `append` drops it.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        file.seek(0)
        whole, end, self.torn = file.read().rpartition(b"\n")
        self.before = (whole + end).splitlines()
        self._length = len(whole + end)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows, all of them or, if the disk is full, none."""
        self._file.truncate(self._length)
        new = b"".join(as_line(row) for row in rows)
        self._file.write(new)
        self._file.flush()
        self._length += len(new)


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as it is written."""
    return json.dumps(row).encode() + b"\n"


@contextlib.contextmanager
def opened(path: Path, what: str) -> Iterator[Lines]:
    """Opens a file to be continued, or a new one; it is locked until it is closed, or the process ends.

    Args:
        path: the file.
        what: its lines are.

    Raises:
        UserError: if it cannot be opened, or another run is writing to it.
    """
    try:
        file = path.open("a+b")
    except OSError as error:
        raise UserError(f"{path} cannot be opened for {what}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"Another run is writing to {path}; wait for it, or name another file.") from error
        yield Lines(path, file)

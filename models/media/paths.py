"""Clips by name: what is a file on this machine, and what else a name may be."""

import glob
import os
import re
from pathlib import Path

from models.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash only
LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS


def clip_path(clip: str | Path) -> Path:
    """The path of a clip.

    Args:
        clip: as typed; a file, a folder or a pattern.

    Raises:
        UserError: if there is no such file, the name is empty, a URL, no name that a file can have, of something that
            can be read only once, or of what the user may not read.
    """
    text = str(clip)
    if not text.strip():
        raise UserError("The clip's name is empty; name a file or a folder.")
    if URL.match(text):
        raise UserError(f"{text} is a URL, and only files on this machine are read; download it first.")
    path = Path(clip)
    if "\0" in text or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(f"No file can be called {text[:40]!r}...; the clip comes first, then the questions.")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is a pipe or a device, and a clip is read twice; save it as a file first.")
        if path.is_dir():
            next(path.iterdir(), None)
        elif path.is_file():
            path.open("rb").close()
        elif path.is_symlink():
            raise UserError(f"{path} is a link to a file that is not there; name the file itself.")
        elif not glob.glob(text):
            raise UserError(f"There is no file {path}; check the path.")
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions, or copy it.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    return path

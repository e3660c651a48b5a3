"""JSON files that hold one object."""

import json
from pathlib import Path
from typing import Any

from models.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/"
"""The beginning of what Git LFS leaves in a file's place."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        UserError: if the file cannot be read, is no JSON, or holds something else.
    """
    return parse_object(file, read_text(file))


def parse_object(file: Path, text: str) -> dict[str, Any]:
    """The object in the text of a file.

    Raises:
        UserError: if the text is no JSON, or holds something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); copy it again from where it came from.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a JSON object, not a {type(content).__name__}; copy it again.")
    return content


def read_text(file: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, or is a pointer of Git LFS.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); copy it again from where it came from.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}); copy it again.") from error
    if text.startswith(POINTER):
        raise UserError(pointer(file))
    return text


def pointer(file: Path) -> str:
    """The sentence about a pointer of Git LFS."""
    return f"{file} is a pointer of Git LFS in place of the file; fetch the file with `git lfs pull`."

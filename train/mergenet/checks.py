"""Whether a downloaded file is the right one."""

from pathlib import Path

from models.errors import UserError
from models.hub.package_index import sha256_of


def checked(path: Path, sha256: str) -> Path:
    """The path, if the file there has this hash.

    Raises:
        UserError: if not.
    """
    if sha256_of(path) != sha256:
        raise UserError(f"{path} is not the file that it should be (its sha256 differs); remove it and try again.")
    return path

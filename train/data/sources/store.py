"""Decoded data sets, kept as .npz in the user's cache so that a restart takes seconds."""

import os
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np

from models.hub.package_index import cache_root


def stored(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the arrays kept under `name`, making and keeping them the first time.

    The file appears by a rename, so that a killed run never leaves half of one.
    """
    path = cache_root() / "decoded" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, **make())
        partial.replace(path)
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Reads one file of a tar archive.

    Raises:
        KeyError: the archive has no such file.
    """
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is a folder or a link in the archive.")
    return file.read()

"""PyTorch state dicts in the format before 1.6: a run of pickles, then raw storages."""

from pathlib import Path
from typing import IO, Any

import numpy as np

from models.errors import UserError
from models.readers.stored import StoredArray
from models.readers.torch_pickle import DAMAGE, LIMIT, place, state_dict, storages, unpickle

MAGIC = 0x1950A86A20F9469CFC6C


def read_legacy_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every tensor in a legacy ``.pth`` state dict.

    Raises:
        UserError: if the file is truncated or damaged, is of another format, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            return {name: stored.read() for name, stored in _places(path, file).items()}
    except DAMAGE as error:
        raise UserError(
            f"{path} is not a readable legacy PyTorch state dict ({error}); delete the file and fetch it again."
        ) from error


def _places(path: Path, file: IO[bytes]) -> dict[str, StoredArray]:
    if _load(file) != MAGIC:
        raise ValueError("the magic number is missing")
    for _ in range(2):  # protocol version, and sizes of the writer's types
        _load(file)
    views = state_dict(_load(file))
    known, keys = storages(views.values()), _load(file)
    if not isinstance(keys, list) or set(map(type, keys)) - {str}:
        raise ValueError("the list of its storages is missing")
    size, starts = path.stat().st_size, {}
    for key in keys:
        storage = known[key]
        length = int.from_bytes(file.read(8), "little")
        starts[key] = file.tell()
        if length != storage.length or starts[key] + length * storage.dtype.itemsize > size:
            raise ValueError("it ends too early")
        file.seek(length * storage.dtype.itemsize, 1)
    return {name: place(path, view, starts[view.storage.key]) for name, view in views.items()}


def _load(file: IO[bytes]) -> Any:
    """The value of the pickle that comes next."""
    start = file.tell()
    value, length = unpickle(file.read(LIMIT))
    file.seek(start + length)
    return value

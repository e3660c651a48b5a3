"""PyTorch state dicts in the format before 1.6 (a run of pickles, then raw storages), read without PyTorch.

The unpickler accepts the four names that a state dict of plain tensors needs and refuses every other, so a file cannot
run code.
"""

import collections
import dataclasses
import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

from models.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4"}


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True)
class _TensorView:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        data = storages[self.storage.key]
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= data.size):
            raise ValueError("a tensor reaches beyond its storage")
        view = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, [stride * data.itemsize for stride in self.strides]
        )
        return view.copy()


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _TensorView:
    return _TensorView(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a state dict of tensors does not need")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, length = pid[:5]
        return _Storage(str(key), np.dtype(dtype), int(length))


def read_legacy_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every tensor in a legacy ``.pth`` state dict.

    Raises:
        UserError: if the file is truncated or damaged, is of another format, or holds anything but tensors.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} is not a readable legacy PyTorch state dict ({error}); delete the file and fetch it again."
        ) from error


def _read(file: IO[bytes]) -> dict[str, np.ndarray]:
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("the magic number is missing")
    for _ in range(2):  # protocol version, and sizes of the writer's types
        _Unpickler(file).load()
    state = _Unpickler(file).load()
    if not isinstance(state, dict) or not all(isinstance(view, _TensorView) for view in state.values()):
        raise ValueError("it holds more than a dictionary of tensors")
    known = {view.storage.key: view.storage for view in state.values()}
    storages = {}
    for key in _Unpickler(file).load():
        storage = known[key]
        length = int.from_bytes(file.read(8), "little")
        data = file.read(storage.length * storage.dtype.itemsize)
        if length != storage.length or len(data) != storage.length * storage.dtype.itemsize:
            raise ValueError("it ends too early")
        storages[key] = np.frombuffer(data, storage.dtype)
    return {name: view.read(storages) for name, view in state.items()}

"""PyTorch's pickles of tensors, read without PyTorch.

The unpickler accepts the few names that a state dict of plain tensors needs and refuses every other, so a file cannot
run code.
"""

import collections
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.readers.stored import StoredArray

STORAGES = {
    "BFloat16Storage": jnp.bfloat16,
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)
"""What a damaged pickle raises."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of values that tensors share."""

    key: str
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor; offset and strides count values of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> TensorView:
    return TensorView(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(view: TensorView, *_: Any) -> TensorView:
    return view


NAMES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): np.dtype(kind) for name, kind in STORAGES.items()}


class TensorUnpickler(pickle.Unpickler):
    """Loads numbers, strings, containers and tensors (as `TensorView`); refuses all else with UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names of `NAMES`."""
        if (module, name) in NAMES:
            return NAMES[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a state dict of tensors does not need")

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, which the pickle only refers to."""
        _, dtype, key, _, length = pid[:5]
        return Storage(str(key), np.dtype(dtype), int(length))


def state_dict(loaded: Any) -> dict[str, TensorView]:
    """The tensors of an unpickled state dict.

    Raises:
        ValueError: if it is anything but a dictionary of names to tensors.
    """
    if not isinstance(loaded, dict):
        raise ValueError("it holds more than a dictionary of tensors")
    if odd := [name for name, value in loaded.items() if not (isinstance(name, str) and isinstance(value, TensorView))]:
        raise ValueError(f"it holds more than a dictionary of tensors: {odd[0]!r} is none")
    return dict(loaded)


def place(path: Path, view: TensorView, start: int) -> StoredArray:
    """Where a tensor lies, if its storage starts at offset `start` of the file.

    Raises:
        ValueError: if the tensor reaches beyond its storage.
    """
    size = view.storage.dtype.itemsize
    stored = StoredArray(path, start + view.offset * size, view.storage.dtype, view.shape, view.strides)
    if view.offset < 0 or stored.end > start + view.storage.length * size:
        raise ValueError("a tensor reaches beyond its storage")
    return stored

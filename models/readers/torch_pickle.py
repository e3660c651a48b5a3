"""PyTorch's pickles of tensors, read without PyTorch and without `pickle.Unpickler`.

An interpreter of the few instructions that `torch.save` writes for a state dict builds dictionaries, lists, tuples,
numbers, strings and tensors, and nothing else. Names of functions and types stay names, so a file can neither run code
nor change an object of this process, and what it makes is no larger than the file by more than a constant factor.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.readers.stored import StoredArray, check_sizes

LIMIT = 4 * 2**20
"""Bytes of a pickle that is read: room for some 20,000 tensors."""
STORAGES = {
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("<i1"),
    "torch ByteStorage": np.dtype("<u1"),
    "torch BoolStorage": np.dtype("?"),
}
DAMAGE = (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)
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


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or type that a pickle names, as "module name"."""

    text: str


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> TensorView:
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("a tensor has no storage or no shape")
    check_sizes(offset, shape, strides)
    return TensorView(storage, offset, shape, strides)


def _rebuild_parameter(view: TensorView, *_: Any) -> TensorView:
    return view


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}


def unpickle(data: bytes) -> tuple[Any, int]:
    """The value of the pickle that `data` starts with, and how many bytes the pickle takes.

    Raises:
        ValueError: if it asks for anything that a state dict of tensors does not need; any of `DAMAGE` if it is
            damaged.
    """
    machine = _Machine()
    for instruction, argument, position in pickletools.genops(data):
        if instruction.name == "STOP":
            return machine.stack.pop(), (position or 0) + 1
        if instruction.name not in INSTRUCTIONS:
            raise ValueError(f"it uses {instruction.name}, which a state dict of tensors does not need")
        INSTRUCTIONS[instruction.name](machine, argument)
    raise ValueError("it ends too early")


class _Machine:
    """The stack machine that a pickle is a program for; each method is an instruction or several alike."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def nothing(self, _: Any) -> None:
        """The protocol's version, and lengths of frames."""

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def name(self, text: str | None) -> None:
        text = " ".join(self.last(2)) if text is None else text
        if text not in STORAGES and text not in FUNCTIONS:
            asked = text.replace(" ", ".", 1)
            raise ValueError(f"it asks for {asked:.100}, which a state dict of tensors does not need")
        self.push(Name(text))

    def call(self, _: Any) -> None:
        function, arguments = self.last(2)
        if type(function) is not Name or type(arguments) is not tuple:
            raise ValueError("it calls what is no function")
        self.push(FUNCTIONS[function.text](*arguments))

    def storage(self, _: Any) -> None:
        """A storage, which the pickle only refers to: ("storage", type, key, device, length)."""
        _, kind, key, _, length = self.stack.pop()[:5]
        if type(kind) is not Name or kind.text not in STORAGES or type(key) is not str:
            raise ValueError("a storage has no type or no key")
        check_sizes(length)
        self.push(Storage(key, STORAGES[kind.text], length))

    def extend(self, items: Iterable[Any]) -> None:
        if type(target := self.stack[-1]) is not list:
            raise ValueError("it adds items to what is no list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        if type(target := self.stack[-1]) is not dict:
            raise ValueError("it adds items to what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError(f"a dictionary has a key of type {type(key).__name__}")
            target[key] = value

    def build(self, _: Any) -> None:
        """Attributes of an object: a state dict has some (the modules' versions), which are not read."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("it sets attributes of what is no dictionary")


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE"), _Machine.push),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.marked()),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.storage,
}


def state_dict(loaded: Any) -> dict[str, TensorView]:
    """The tensors of an unpickled state dict.

    Raises:
        ValueError: if it is anything but a dictionary of names to tensors.
    """
    if type(loaded) is not dict:
        raise ValueError("it holds more than a dictionary of tensors")
    if odd := [name for name, value in loaded.items() if type(name) is not str or type(value) is not TensorView]:
        raise ValueError(f"it holds more than a dictionary of tensors: {odd[0]!r:.100} is none")
    return loaded


def storages(views: Iterable[TensorView]) -> dict[str, Storage]:
    """Key -> storage of all tensors.

    Raises:
        ValueError: if tensors disagree on the type or length of a storage.
    """
    found: dict[str, Storage] = {}
    for view in views:
        if found.setdefault(view.storage.key, view.storage) != view.storage:
            raise ValueError(f"the storage {view.storage.key} is of several types or lengths")
    return found


def place(path: Path, view: TensorView, start: int) -> StoredArray:
    """Where a tensor lies, if its storage starts at offset `start` of the file.

    Raises:
        ValueError: if the tensor reaches beyond its storage, or repeats values of it so that it would be larger.
    """
    size = view.storage.dtype.itemsize
    stored = StoredArray(path, start + view.offset * size, view.storage.dtype, view.shape, view.strides)
    if stored.size > view.storage.length or stored.end > start + view.storage.length * size:
        raise ValueError("a tensor reaches beyond its storage")
    return stored

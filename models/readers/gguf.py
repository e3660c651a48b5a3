"""GGUF, version 3: metadata and tensors, for the tensor types that our checkpoints use.

Layout and block types: ggml's `docs/gguf.md` and `ggml-quants`. The reader of the `gguf` package needs 3 s for the
metadata of a 49,152-token vocabulary; this one a small part of that.
"""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from models.errors import UserError
from models.readers.cursor import Cursor

MAGIC = b"GGUF"
VERSION = 3
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32

Result = TypeVar("Result")


def read_gguf_metadata(path: Path) -> dict[str, Any]:
    """Key -> number, string or list.

    Raises:
        UserError: if the file is truncated or damaged, or of another version.
    """
    return _with_cursor(path, lambda cursor: _header(cursor)[0])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata as in `read_gguf_metadata`, and name -> float32 array of every tensor, dequantised.

    Axes run from the slowest to the fastest: a matrix is [out, in].

    Raises:
        UserError: if the file is truncated or damaged, of another version, or has a tensor type that is not read here.
    """
    return _with_cursor(path, _read)


def _with_cursor(path: Path, read: Callable[[Cursor], Result]) -> Result:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read(Cursor(data))
    except (ValueError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is not a readable GGUF file ({error}); delete the file and fetch it again.") from error


def _header(cursor: Cursor) -> tuple[dict[str, Any], int]:
    if cursor.take(4) != MAGIC:
        raise ValueError("the magic number is missing")
    if (version := cursor.number("I")) != VERSION:
        raise ValueError(f"format version {version}, where {VERSION} is expected")
    tensors, keys = cursor.numbers("Q", 2)
    metadata = {}
    for _ in range(keys):
        key = _string(cursor)
        metadata[key] = _value(cursor, cursor.number("I"))
    return metadata, tensors


def _string(cursor: Cursor) -> str:
    return cursor.take(cursor.number("Q")).decode()


def _value(cursor: Cursor, kind: int) -> Any:
    if kind == STRING:
        return _string(cursor)
    if kind != ARRAY:
        return cursor.number(SCALARS[kind])
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == STRING:
        return [_string(cursor) for _ in range(count)]
    return list(cursor.numbers(SCALARS[kind], count))


def _read(cursor: Cursor) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    metadata, count = _header(cursor)
    entries = []
    for _ in range(count):
        name = _string(cursor)
        shape = cursor.numbers("Q", cursor.number("I"))[::-1]
        entries.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    start = -(-cursor.offset // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in entries:
        if kind not in TENSOR_TYPES:
            raise ValueError(f"tensor {name} is of type {kind}, where one of {sorted(TENSOR_TYPES)} is expected")
        values, size, decode = TENSOR_TYPES[kind]
        cursor.offset = start + offset
        raw = np.frombuffer(cursor.take(int(np.prod(shape)) // values * size), np.uint8)
        tensors[name] = decode(raw.reshape(-1, size)).reshape(shape)
    return metadata, tensors


def _f32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4")


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    """Scale and minimum in half precision, then 16 bytes: the low halves of all, then the high halves."""
    scale, minimum = (_f16(blocks[:, i : i + 2].copy()) for i in (0, 2))
    packed = blocks[:, 4:]
    return np.concatenate([packed & 15, packed >> 4], axis=1) * scale + minimum


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """Scale in half precision, then 32 signed bytes."""
    return blocks[:, 2:].view(np.int8) * _f16(blocks[:, :2].copy())


TENSOR_TYPES: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    # number: (values per block, bytes per block, [blocks, bytes] -> [blocks, values])
    0: (1, 4, _f32),
    1: (1, 2, _f16),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}

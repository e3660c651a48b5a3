"""GGUF, version 3: metadata and tensors, with the tensor types that our checkpoints use.

Layout and block types: ggml's `docs/gguf.md` and `ggml-quants`. The reader of the `gguf` package needs 3 s for the
metadata of a 49,152-word vocabulary, this one a tenth of that.
"""

import dataclasses
import struct
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError

MAGIC = b"GGUF"
VERSION = 3
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
BLOCK = 32


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds.

    Attributes:
        metadata: key -> number, string or list.
        tensors: name -> float32 array; axes run from the slowest to the fastest, so a matrix is [out, in].
    """

    metadata: dict[str, Any]
    tensors: dict[str, np.ndarray]


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        chunk = self.data[self.offset : self.offset + count]
        if len(chunk) != count:
            raise ValueError("it ends too early")
        self.offset += count
        return chunk

    def scalars(self, code: str, count: int) -> tuple:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code)))

    def number(self, code: str) -> Any:
        return self.scalars(code, 1)[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        return list(self.scalars(SCALARS[kind], count))


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4").astype(np.float32)


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2").astype(np.float32)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """Blocks of 32: scale, minimum (half precision), then 16 bytes; low halves first, then high halves."""
    blocks = raw.reshape(-1, 20)
    scale, minimum = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    packed = blocks[:, 4:]
    return (np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) * scale + minimum).reshape(-1)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """Blocks of 32: scale (half precision), then 32 signed bytes."""
    blocks = raw.reshape(-1, 34)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return (blocks[:, 2:].view(np.int8).astype(np.float32) * scale).reshape(-1)


TENSOR_TYPES = {  # number -> values per block, bytes per block, decoder
    0: (1, 4, _f32),
    1: (1, 2, _f16),
    3: (BLOCK, 20, _q4_1),
    8: (BLOCK, 34, _q8_0),
}


def read_gguf(path: Path) -> GgufFile:
    """Reads metadata and tensors, dequantised to float32.

    Raises:
        UserError: if the file is truncated or damaged, of another version, or has a tensor type that is not read here.
    """
    try:
        return _read(_Cursor(path.read_bytes()))
    except (ValueError, KeyError, struct.error, OverflowError, MemoryError) as error:
        raise UserError(f"{path} is not a readable GGUF file ({error}); delete the file and fetch it again.") from error


def _read(cursor: _Cursor) -> GgufFile:
    if cursor.take(4) != MAGIC:
        raise ValueError("the magic number is missing")
    if (version := cursor.number("I")) != VERSION:
        raise ValueError(f"format version {version}, where {VERSION} is expected")
    tensor_count, key_count = cursor.scalars("Q", 2)
    metadata = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.number("I"))
    entries = []
    for _ in range(tensor_count):
        name = cursor.string()
        shape = cursor.scalars("Q", cursor.number("I"))[::-1]
        entries.append((name, shape, cursor.number("I"), cursor.number("Q")))
    alignment = metadata.get("general.alignment", BLOCK)
    start = -(-cursor.offset // alignment) * alignment
    return GgufFile(metadata, {name: _tensor(cursor.data, start, *entry) for name, *entry in entries})


def _tensor(data: bytes, start: int, shape: tuple[int, ...], kind: int, offset: int) -> np.ndarray:
    if kind not in TENSOR_TYPES:
        raise ValueError(f"tensor type {kind}, where one of {sorted(TENSOR_TYPES)} is expected")
    values, size, decode = TENSOR_TYPES[kind]
    count = int(np.prod(shape)) // values * size
    if start + offset + count > len(data):
        raise ValueError("it ends too early")
    return decode(np.frombuffer(data, np.uint8, count, start + offset)).reshape(shape)

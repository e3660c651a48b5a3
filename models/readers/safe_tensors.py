"""safetensors files, read lazily: the header says where each tensor lies.

Layout (https://huggingface.co/docs/safetensors): the header's length in 8 bytes, the header as JSON, the values. The
`safetensors` package maps a whole file into memory; here a slice is read without the rest.
"""

import json
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from models.errors import UserError
from models.readers.stored import StoredArray

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}
LIMIT = 100_000_000
"""Bytes of a header, as in the `safetensors` package."""


def read_safetensors(path: Path) -> dict[str, StoredArray]:
    """Name -> place of every tensor in a file; the values are not read yet.

    Raises:
        UserError: if the file is truncated or damaged, or has tensors of a type that is not read here.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again.") from error


def _read(path: Path, file: IO[bytes]) -> dict[str, StoredArray]:
    size = path.stat().st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    if start > size:
        raise ValueError("it ends too early")
    if start > LIMIT:
        raise ValueError(f"its header is larger than {LIMIT:,} bytes")
    header: dict[str, Any] = json.loads(file.read(start - 8))
    header.pop("__metadata__", None)
    tensors = {name: _place(path, start, name, entry) for name, entry in header.items()}
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.end)):
        if tensor.offset != end:
            raise ValueError("its tensors overlap or leave gaps")
        end = tensor.end
    if end != size:
        raise ValueError(f"it has {size:,} bytes where its header asks for {end:,}")
    return tensors


def _place(path: Path, start: int, name: str, entry: dict[str, Any]) -> StoredArray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} is of type {entry['dtype']}, where one of {', '.join(DTYPES)} is expected")
    first, last = entry["data_offsets"]
    place = StoredArray(path, start + first, np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]))
    if place.end != start + last:
        raise ValueError(f"{name} is of shape {list(place.shape)}, which does not fill its {last - first:,} bytes")
    return place

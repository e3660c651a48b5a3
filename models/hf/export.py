"""Parameters to a checkpoint folder that transformers reads: sharded safetensors, their index, and config.json."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from models.files import whole_folder
from models.hf.load import checkpoint_shape
from models.hf.tensors import Tensor, Tensors
from models.layers.init import Params
from models.readers.safe_tensors import DTYPES

SINGLE = "model.safetensors"
CODES = {np.dtype(kind): code for code, kind in DTYPES.items()}


def save_params(
    folder: Path,
    params: Params,
    tensors: Tensors,
    config: Mapping[str, Any],
    *,
    max_shard_bytes: float = 5e9,
    companions: Iterable[Path] = (),
) -> None:
    """Writes a checkpoint. The folder appears whole or not at all; at most one tensor is held on the host.

    Args:
        folder: to be made; it may not exist, or be empty.
        params: nested dict of arrays, on any devices of this process.
        tensors: names in the checkpoint of all parameters.
        config: what config.json is to hold.
        max_shard_bytes: a shard holds at most so many bytes of values, or a single tensor.
        companions: files to copy into the folder.

    Raises:
        UserError: if the folder is in use, or its parent does not exist.
    """
    with whole_folder(folder) as draft:
        flat: dict[Any, Any] = flatten_dict(params)
        types = {name: np.dtype(flat[tensor.path].dtype) for name, tensor in tensors.items()}
        shapes = {name: checkpoint_shape(tensor, flat[tensor.path].shape) for name, tensor in tensors.items()}
        sizes = {name: int(np.prod(shape)) * types[name].itemsize for name, shape in shapes.items()}
        shards = _shards(sizes, max_shard_bytes)
        for file, names in shards.items():
            with (draft / file).open("wb") as out:
                _write_header(out, {name: (types[name], shapes[name], sizes[name]) for name in names})
                for name in names:
                    out.write(_values(flat[tensors[name].path], tensors[name]).data)
        if list(shards) != [SINGLE]:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            (draft / f"{SINGLE}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for path in companions:
            shutil.copy(path, draft)


def _shards(sizes: Mapping[str, int], most: float) -> dict[str, list[str]]:
    """File -> names of its tensors, filled in order."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _write_header(out: BinaryIO, entries: Mapping[str, tuple[np.dtype, tuple[int, ...], int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape, size) in entries.items():
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": (start, start + size)}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values start at multiples of 8 bytes
    out.write(len(text).to_bytes(8, "little") + text)


@jax.jit
def _layer(layers: jax.Array, number: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(layers, number, keepdims=False)


def _values(param: jax.Array, tensor: Tensor) -> np.ndarray:
    """A parameter's bytes in the checkpoint's order of axes."""
    # An array keeps what it has copied to the host; the copy is soon dropped.
    array = np.asarray(param.copy() if tensor.layer is None else _layer(param, tensor.layer))
    if tensor.order is not None:
        array = array.transpose(np.argsort(tensor.order))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)

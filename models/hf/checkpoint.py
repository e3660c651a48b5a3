"""The tensors of a checkpoint folder: safetensors or PyTorch's `.bin`, in one file or in shards with an index."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.errors import UserError
from models.readers.safe_tensors import read_safetensors
from models.readers.stored import StoredArray
from models.readers.torch_zip import read_torch_zip

MAIN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder's tensors are looked for in; the first that is there counts, as in transformers."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: no values have been read.

    Attributes:
        folder: where it lies.
        tensors: name in the checkpoint -> where its values lie.
    """

    folder: Path
    tensors: dict[str, StoredArray]


def open_checkpoint(folder: Path, parts: Iterable[str] = ()) -> Checkpoint:
    """Opens the checkpoint in a folder.

    Args:
        folder: as `save_pretrained` writes it.
        parts: names of further files of tensors ("audio_tower.bin"), each read if it is there. A part may repeat
            tensors of the main files, as long as their values are the same.

    Raises:
        UserError: if there is no checkpoint, shards are missing, a file is truncated, damaged or of another format, or
            tensors are in two files.
    """
    found = next((folder / name for name in MAIN if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} is no checkpoint: it has none of {', '.join(MAIN)}.")
    tensors = _sharded(found) if found.suffix == ".json" else _read(found)
    for path in (folder / name for name in parts if (folder / name).is_file()):
        part = _read(path)
        copies = {name for name in part.keys() & tensors.keys() if _equal(part[name], tensors[name])}
        _join(tensors, {name: stored for name, stored in part.items() if name not in copies})
    return Checkpoint(folder, tensors)


def _read(path: Path) -> dict[str, StoredArray]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_zip(path)


def _sharded(index: Path) -> dict[str, StoredArray]:
    try:
        files: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        shards = [index.with_name(name) for name in sorted(set(files.values()))]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not a readable index of shards ({error}); copy it again.") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{index.parent} lacks shards that its index names: {', '.join(missing)}; copy them too.")
    tensors: dict[str, StoredArray] = {}
    for shard in shards:
        _join(tensors, _read(shard))
    wrong = [name for name, file in files.items() if name not in tensors or tensors[name].file.name != file]
    if wrong:
        raise UserError(f"{index} names tensors that are not in their shards: {listing(wrong)}; copy the folder again.")
    return tensors


def _join(tensors: dict[str, StoredArray], more: dict[str, StoredArray]) -> None:
    """Adds `more` to `tensors`."""
    if twice := [f"{n} ({tensors[n].file.name} and {more[n].file.name})" for n in more if n in tensors]:
        folder = tensors[next(n for n in more if n in tensors)].file.parent
        raise UserError(f"{folder} has tensors in two files: {listing(twice)}; delete the file that does not belong.")
    tensors.update(more)


def _equal(a: StoredArray, b: StoredArray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.read(), b.read())


def listing(items: list[str], most: int = 20) -> str:
    """The first items, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return ", ".join([*items[:most], *more])

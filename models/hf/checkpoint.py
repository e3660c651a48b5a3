"""The tensors of a checkpoint folder: safetensors or PyTorch's `.bin`, in one file or in shards with an index."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from models.errors import UserError
from models.orbax import holds_orbax
from models.readers.json_object import POINTER, pointer, read_object
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
        copies: names that two files hold -> the files; `load_params` refuses them.
        orbax: whether the parameters lie in an Orbax checkpoint instead (`models.orbax`), under our names.
    """

    folder: Path
    tensors: dict[str, StoredArray]
    copies: dict[str, str]
    orbax: bool = False


def open_checkpoint(folder: Path, parts: Iterable[str] = ()) -> Checkpoint:
    """Opens the checkpoint in a folder.

    Args:
        folder: as `save_pretrained` or `python -m train.export --to orbax` writes it.
        parts: names of further files of tensors ("audio_tower.bin"), each read if it is there. A part may repeat
            tensors of the main files, as long as their values are the same.

    Raises:
        UserError: if there is no checkpoint, shards are missing, or a file is truncated, damaged or of another format.
    """
    if holds_orbax(folder):
        return Checkpoint(folder, {}, {}, orbax=True)
    found = next((folder / name for name in MAIN if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} is no checkpoint: it has none of {', '.join(MAIN)}.")
    tensors: dict[str, StoredArray] = {}
    copies: dict[str, str] = {}
    for path in _shards(found) if found.suffix == ".json" else [found]:
        _join(tensors, copies, _read(path))
    for path in (folder / name for name in parts if (folder / name).is_file()):
        part = _read(path)
        same = {name for name in part.keys() & tensors.keys() if part[name].equals(tensors[name])}
        _join(tensors, copies, {name: stored for name, stored in part.items() if name not in same})
    return Checkpoint(folder, tensors, copies)


def _read(path: Path) -> dict[str, StoredArray]:
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER.encode():
            raise UserError(pointer(path))
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch_zip(path)


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index divides the tensors over.

    Raises:
        UserError: if it is no such index.
    """
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; copy it again.")
    return sorted(set(files.values()))


def _shards(index: Path) -> list[Path]:
    names = shard_names(index)
    try:
        shards = [index.with_name(name) for name in names]
    except ValueError as error:
        raise UserError(f"{index} names a shard that is no file of its folder ({error}); copy it again.") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{index.parent} lacks shards that its index names: {listing(missing)}; copy them too.")
    return shards


def _join(tensors: dict[str, StoredArray], copies: dict[str, str], more: dict[str, StoredArray]) -> None:
    """Adds `more` to `tensors`, and to `copies` what is there already."""
    copies |= {name: f"{tensors[name].file.name} and {more[name].file.name}" for name in more if name in tensors}
    tensors |= more


def listing(items: list[str], most: int = 20) -> str:
    """The first items, and how many more there are."""
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return ", ".join([*items[:most], *more])

"""The folder of a saved cache: it is whole or absent, and an index holds the checksums of its files."""

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

INDEX = "cache.json"
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
_MESSAGE_BYTES = 4096


@contextlib.contextmanager
def new_folder(folder: Path, index: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into, which gets its index and its name at the end, or is removed if anything fails.

    All processes enter it; the first one makes and names the folder.

    Raises:
        ValueError: if the folder exists already, or cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")  # one name, so that the next save removes what a kill left

    def begin() -> None:
        if os.path.lexists(folder):
            raise ValueError(f"{folder} exists already: choose another folder, or remove it.")
        with _in_a_sentence(folder):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)

    def finish() -> None:
        with _in_a_sentence(folder):
            written = sorted(path for path in partial.rglob("*") if path.is_file())
            files = {path.relative_to(partial).as_posix(): _checksum(path) for path in written}
            (partial / INDEX).write_text(_sealed(index | {"files": files}))
            for path in (*partial.rglob("*"), partial):
                _flush(path)
            partial.rename(folder)
            _flush(folder.parent)

    try:
        in_first_process(begin)
        with _in_a_sentence(folder):
            yield partial
        in_first_process(finish)
    except BaseException:
        if jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def read_index(folder: Path, version: int) -> dict[str, Any]:
    """The index of a folder of this version of the format.

    Raises:
        ValueError: if there is none, or it is damaged, or of another version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} is not a saved cache: there is no {INDEX} in it.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError:
        raise ValueError(_damaged(path)) from None
    if not isinstance(index, dict) or "format" not in index:
        raise ValueError(f"{folder} is not a saved cache: its {INDEX} is not one that save_cache writes.")
    if index["format"] != version:
        raise ValueError(
            f"{folder} holds a cache of format {index['format']}, saved by acckv_jax {index.get('acckv_jax')}; this "
            f"acckv_jax reads format {version}: load it with the other one, or save the cache again."
        )
    if index.pop("checksum", None) != _own_checksum(index):
        raise ValueError(_damaged(path))
    return index


def check_files(folder: Path, files: dict[str, list[int]]) -> None:
    """Reads all files and compares them with their checksums.

    Raises:
        ValueError: naming the first that differs.
    """
    for name, expected in files.items():
        path = folder / name
        try:
            found = _checksum(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        if found != expected:
            raise ValueError(_damaged(path))


def in_first_process(work: Callable[[], None]) -> None:
    """Runs `work` in the first process while the others wait; its ValueError is raised in all of them.

    Raises:
        ValueError: as `work`.
    """
    message = ""
    if jax.process_index() == 0:
        try:
            work()
        except ValueError as error:
            if jax.process_count() == 1:
                raise
            message = str(error)
    if jax.process_count() > 1:
        text = np.frombuffer(message.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES), np.uint8)
        told = np.asarray(multihost_utils.broadcast_one_to_all(text), np.uint8)
        if message := told.tobytes().decode(errors="replace").strip():
            raise ValueError(message)


@contextlib.contextmanager
def _in_a_sentence(folder: Path) -> Iterator[None]:
    """Raises what writing fails with as a ValueError that names the folder and the reason."""
    try:
        yield
    except (OSError, ValueError) as error:  # TensorStore's are ValueErrors of a page each
        code = _SYSTEM_ERROR.search(str(error))
        reason = os.strerror(int(code[1])) if code else error.strerror if isinstance(error, OSError) else None
        reason = reason or str(error).partition(" [tensorstore_spec=")[0]
        raise ValueError(f"the cache cannot be written to {folder}: {reason}.") from error


def _damaged(path: Path) -> str:
    return f"{path} is damaged: remove the folder and save the cache again."


def _sealed(index: dict[str, Any]) -> str:
    return json.dumps(index | {"checksum": _own_checksum(index)}, indent=1)


def _own_checksum(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _checksum(path: Path) -> list[int]:
    """Bytes and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""PyTorch state dicts in the zip format of 1.6 and later, read without PyTorch and without running code.

The archive holds, uncompressed, `NAME/data.pkl` and the values of each storage in `NAME/data/KEY`; so a tensor is a
place in the file.
"""

import struct
import zipfile
from pathlib import Path

from models.errors import UserError
from models.readers.stored import StoredArray
from models.readers.torch_pickle import DAMAGE, LIMIT, place, state_dict, storages, unpickle

LOCAL_HEADER = struct.Struct("<26x2H")
"""Of a zip member: 26 bytes, then the lengths of the name and of the extra field, which precede the values."""


def read_torch_zip(path: Path) -> dict[str, StoredArray]:
    """Name -> place of every tensor in a ``.bin`` or ``.pth`` state dict; the values are not read yet.

    Raises:
        UserError: if the file is truncated or damaged, is of another format, or holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, *DAMAGE) as error:  # RuntimeError: encrypted
        raise UserError(
            f"{path} is not a readable PyTorch state dict ({error}); copy it again, or save it anew with torch.save."
        ) from error


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredArray]:
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if "byteorder" in members and _contents(archive, members["byteorder"]) != b"little":
        raise ValueError("its numbers are big-endian")
    views = state_dict(unpickle(_contents(archive, members["data.pkl"]))[0])
    size, starts = path.stat().st_size, {}
    for key, storage in storages(views.values()).items():
        member = members[f"data/{key}"]
        starts[key] = _start(archive, member)
        length = storage.length * storage.dtype.itemsize
        if member.file_size != length or starts[key] + length > size:
            raise ValueError(f"{member.filename} is not of the size that the tensors ask for")
    return {name: place(path, view, starts[view.storage.key]) for name, view in views.items()}


def _contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    _stored(member)
    if member.file_size > LIMIT:
        raise ValueError(f"{member.filename} is larger than {LIMIT:,} bytes")
    return archive.read(member)


def _start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Offset of a member's first byte in the file."""
    _stored(member)
    archive.open(member).close()  # checks the header
    assert archive.fp is not None
    archive.fp.seek(member.header_offset)
    header = archive.fp.read(LOCAL_HEADER.size)
    return member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))


def _stored(member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")

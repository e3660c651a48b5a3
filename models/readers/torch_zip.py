"""PyTorch state dicts in the zip format of 1.6 and later, read without PyTorch and without running code.

The archive holds `NAME/data.pkl`, and the values of each storage uncompressed in `NAME/data/KEY`; so a tensor is a
place in the file.
"""

import struct
import zipfile
from pathlib import Path

from models.errors import UserError
from models.readers.stored import StoredArray
from models.readers.torch_pickle import DAMAGE, TensorUnpickler, place, state_dict

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
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGE) as error:
        raise UserError(
            f"{path} is not a readable PyTorch state dict ({error}); copy it again, or save it anew with torch.save."
        ) from error


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredArray]:
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise ValueError("its numbers are big-endian")
    with archive.open(members["data.pkl"]) as file:
        views = state_dict(TensorUnpickler(file).load())
    starts = {}
    for storage in {view.storage for view in views.values()}:
        member = members[f"data/{storage.key}"]
        if member.file_size != storage.length * storage.dtype.itemsize:
            raise ValueError(f"{member.filename} is not of the size that the tensors ask for")
        starts[storage.key] = _start(archive, member)
    return {name: place(path, view, starts[view.storage.key]) for name, view in views.items()}


def _start(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Offset of a member's first byte in the file."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    archive.open(member).close()  # checks the header
    assert archive.fp is not None
    archive.fp.seek(member.header_offset)
    header = archive.fp.read(LOCAL_HEADER.size)
    return member.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))

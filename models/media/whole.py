"""Whether a file is as long as it says: the sizes that containers write into their headers.

FFmpeg reads most files that were cut short without a word, until their bytes end.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from models.errors import UserError

OPEN_SIZE = 2_000_000_000
"""Sizes from here on in a RIFF file that is smaller stand for "not known yet": programs that write into a pipe differ
in which one they take, and few files of sound are as large."""
OGG_PAGE, LARGEST_OGG_PAGE = b"OggS", 65_307
WAVE64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
EBML_HEADER, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
MXF_PARTITION = bytes.fromhex("060e2b34020501010d010201010204")
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot"})


def check_whole(path: Path) -> None:
    """Refuses a file that is shorter than its header says.

    Raises:
        UserError: the file was cut short.
    """
    found = path.stat().st_size
    with path.open("rb") as file:
        promised = promised_size(file, found)
        if not _gif_ends(file):
            raise UserError(f"{path} is cut short: the end of the GIF is missing; copy it again.")
    if promised is not None and promised > found:
        raise UserError(
            f"{path} is cut short: its header promises {promised} bytes, it has {found}; copy it again, or save what "
            f"is there as a file of its own (ffmpeg -i {path.name} whole{path.suffix})."
        )


def has_open_end(path: Path) -> bool:
    """Whether an Ogg file lacks the mark of its end: it was cut short, or recorded from a stream."""
    with path.open("rb") as file:
        if file.read(4) != OGG_PAGE:
            return False
        file.seek(max(0, path.stat().st_size - LARGEST_OGG_PAGE))
        tail = file.read()
    last = tail.rfind(OGG_PAGE)
    return not (last >= 0 and tail[last + 5 : last + 6] and tail[last + 5] & 4)


def promised_size(file: BinaryIO, found: int) -> int | None:
    """Bytes that a file must have by its own word; None if it does not say.

    Args:
        file: opened for reading.
        found: the bytes it has.
    """
    head = file.read(64)
    if head[:4] == b"RIFF":
        return _riff(file, head, found)
    if head[:4] in (b"RF64", b"BW64") and head[12:16] == b"ds64":
        return int.from_bytes(head[20:28], "little") + 8
    if head[:16] == WAVE64:
        return int.from_bytes(head[16:24], "little")
    if head[:4] == b"FORM":
        return int.from_bytes(head[4:8], "big") + 8
    if head[:4] == b".snd":
        start, size = struct.unpack(">II", head[4:12])
        return None if size >= OPEN_SIZE else start + size
    if head[:4] == b"caff":
        return _caf(file, found)
    if head[4:8] in BOXES:
        return max((end for _, end in boxes(file, found)), default=None)
    if head[:4] == EBML_HEADER:
        return _matroska(file)
    if head[:16] == ASF_HEADER:
        return _asf(file, found)
    if head[:3] == b"FLV":
        return _flv(file)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xE6 == 0xE2):
        return _mp3(file)
    if MXF_PARTITION[:14] in head:
        return _mxf(file)
    return None


def is_fragmented(path: Path) -> bool:
    """Whether an mp4 file is a series of fragments, whose header has no duration, or that of all fragments."""
    with path.open("rb") as file:
        return any(kind == b"moof" for kind, _ in boxes(file, path.stat().st_size))


def boxes(file: BinaryIO, found: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box at the top of an mp4 file, as far as they make sense."""
    start = 0
    while start + 8 <= found:
        file.seek(start)
        head = file.read(16)
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = struct.unpack(">Q", head[8:])[0]
        if size == 0:  # until the end of the file
            size = found - start
        if size < 8 or kind not in BOXES and not kind.isalnum():
            return
        start += size
        yield kind, start


def _riff(file: BinaryIO, head: bytes, found: int) -> int | None:
    """By the size of all or that of the samples: programs err in one or the other, and a file cut short breaks both."""
    outer = int.from_bytes(head[4:8], "little")
    promised = [] if outer >= OPEN_SIZE else [outer + 8]
    start = 12
    while head[8:12] == b"WAVE" and start + 8 <= found:
        file.seek(start)
        kind, size = struct.unpack("<4sI", file.read(8))
        start += 8 + size
        if kind == b"data":
            if size >= OPEN_SIZE:
                return None
            promised.append(start)
            break
        start += size % 2
    return min(promised, default=None)


def _caf(file: BinaryIO, found: int) -> int | None:
    """By the sizes of its chunks; that of the samples is -1 while they are recorded."""
    start = 8
    while start + 12 <= found:
        file.seek(start + 4)
        size = int.from_bytes(file.read(8), "big", signed=True)
        if size < 0:
            return None
        start += 12 + size
    return start


def _vint(file: BinaryIO, *, marker: bool) -> int | None:
    """A number of EBML; None if it stands for "unknown" or there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big")
    if marker:
        return value
    value -= 1 << 7 * length
    return None if value == (1 << 7 * length) - 1 else value


def _matroska(file: BinaryIO) -> int | None:
    """By the size of the segment, which holds all but the first few bytes; recorders leave it unknown."""
    file.seek(4)
    header = _vint(file, marker=False)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != SEGMENT:
        return None
    size = _vint(file, marker=False)
    return None if size is None else file.tell() + size


def _asf(file: BinaryIO, found: int) -> int | None:
    """By the sizes of its objects; that of the data is zero in a stream that was recorded."""
    start = 0
    while start + 24 <= found:
        file.seek(start + 16)
        size = int.from_bytes(file.read(8), "little")
        if size < 24:
            return None
        start += size
    return start


def _flv(file: BinaryIO) -> int | None:
    """By the entry "filesize" of its metadata."""
    file.seek(0)
    before, name, after = file.read(4096).partition(b"\x00\x08filesize\x00")
    return int(struct.unpack(">d", after[:8])[0]) if name and len(after) >= 8 else None


def _mp3(file: BinaryIO) -> int | None:
    """By the frame of Xing or Info, which says how many bytes there are from it on."""
    file.seek(0)
    head, start = file.read(10), 0
    if head[:3] == b"ID3":
        start = 10 + sum(byte << 7 * (3 - place) for place, byte in enumerate(head[6:10]))
    file.seek(start)
    frame = file.read(64)
    for tag in (b"Xing", b"Info"):
        place = frame.find(tag)
        fields = frame[place + 4 : place + 16]
        if place > 0 and len(fields) == 12:
            flags, first, second = struct.unpack(">3I", fields)
            if flags & 2:
                return start + (second if flags & 1 else first)
    return None


def _mxf(file: BinaryIO) -> int | None:
    """By the place of the footer, which only complete files name."""
    file.seek(0)
    head = file.read(1 << 16)
    start = head.find(MXF_PARTITION[:14]) + 16
    length = head[start] if start < len(head) else 0
    start += 1 + (length & 0x7F if length & 0x80 else 0)
    if len(head) < start + 32:
        return None
    return struct.unpack(">Q", head[start + 24 : start + 32])[0] or None


def _gif_ends(file: BinaryIO) -> bool:
    """Whether the blocks of a GIF go on until its end; true of all other files."""
    file.seek(0)
    head = file.read(13)
    if head[:3] != b"GIF" or len(head) < 13:
        return True
    file.seek(_palette(head[10]), 1)
    while (kind := file.read(1)) not in (b"", b";"):
        if kind == b",":
            place = file.read(9)
            file.seek(_palette(place[8]) if len(place) == 9 else 0, 1)
        file.read(1)  # of pictures the width of codes, of others their label
        while size := int.from_bytes(file.read(1), "little"):
            file.seek(size, 1)
    return kind == b";"


def _palette(flags: int) -> int:
    """Bytes of the table of colours that the flags of a GIF announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0

"""Reading a binary file from front to back."""

import mmap
import struct
from typing import Any


class Cursor:
    """A position in little-endian binary data.

    Every method raises ValueError where the data end too early.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self.data) - self.offset:
            raise ValueError("it ends too early")
        chunk = self.data[self.offset : self.offset + count]
        self.offset += count
        return chunk

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """The next `count` numbers of one of the types of the `struct` module."""
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code)))

    def number(self, code: str) -> Any:
        """The next number."""
        return self.numbers(code, 1)[0]

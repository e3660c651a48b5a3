"""An array that lies in a file: its shape and type are known, its values are read when asked for."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

Index = tuple[slice, ...]
MAX_AXES = 32
COMPARED = 2**22
"""Values of two arrays that are compared at a time."""


def check_sizes(*sizes: object) -> None:
    """Checks sizes, offsets and strides that a file gives, each a number or a tuple of numbers.

    Raises:
        ValueError: if one is negative, no integer or beyond 63 bits, or there are too many.
    """
    for size in sizes:
        numbers = size if isinstance(size, tuple) else (size,)
        if any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
            raise ValueError("a tensor has a size that is negative, too large or no integer")
        if len(numbers) > MAX_AXES:
            raise ValueError(f"a tensor has more than {MAX_AXES} axes")


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """Where an array lies.

    Attributes:
        file: path of the file.
        offset: of the first value, in bytes.
        dtype: type of the values.
        shape: sizes of the axes.
        strides: step of each axis, in values; None if the values lie in order, the last axis fastest.
    """

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks that the values can be addressed.

        Raises:
            ValueError: if a size, a stride or the offset is negative, too large or no integer.
        """
        check_sizes(self.offset, self.shape, self.strides or ())
        if math.prod(max(n, 1) for n in self.shape) * self.dtype.itemsize >= 2**63:  # NumPy leaves zeros out as well
            raise ValueError("a tensor is too large")

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Offset behind the last value, in bytes."""
        if self.size == 0:
            return self.offset
        if self.strides is None:
            return self.offset + self.size * self.dtype.itemsize
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.offset + (last + 1) * self.dtype.itemsize

    def view(self, index: Index = (), shape: tuple[int, ...] | None = None) -> Shaped[np.ndarray, "..."]:
        """The values, or a part of them, mapped into memory: only what is copied from the view is read from the file.

        Args:
            index: slices of the leading axes.
            shape: another shape of equal size, that the array takes before it is indexed.
        """
        if self.size == 0:
            return np.empty(self.shape, self.dtype).reshape(shape or self.shape)[index]
        size = (self.end - self.offset) // self.dtype.itemsize
        values = np.memmap(self.file, self.dtype, "r", self.offset, (size,))
        if self.strides is not None:
            strides = [stride * self.dtype.itemsize for stride in self.strides]
            values = np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)
        return values.reshape(self.shape if shape is None else shape)[index]

    def read(self) -> Shaped[np.ndarray, "..."]:
        """A copy of all values."""
        return np.array(self.view(), subok=False)

    def equals(self, other: "StoredArray") -> bool:
        """Whether type, shape and all values are the same; of the values only a part is read at a time."""
        if self.shape != other.shape or self.dtype != other.dtype:
            return False
        parts = (slice(i, i + COMPARED) for i in range(0, self.size, COMPARED))
        return all(
            np.array_equal(self.view((part,), (self.size,)), other.view((part,), (self.size,))) for part in parts
        )

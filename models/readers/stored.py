"""An array that lies in a file: its shape and type are known, its values are read when asked for."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

Index = tuple[slice, ...]


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

    @property
    def end(self) -> int:
        """Offset behind the last value, in bytes.

        Raises:
            ValueError: if a size, a stride or the offset is negative.
        """
        if min((self.offset, *self.shape, *(self.strides or ()))) < 0:
            raise ValueError("a tensor has a negative size")
        if 0 in self.shape:
            return self.offset
        if self.strides is None:
            return self.offset + math.prod(self.shape) * self.dtype.itemsize
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.offset + (last + 1) * self.dtype.itemsize

    def view(self, index: Index = (), shape: tuple[int, ...] | None = None) -> Shaped[np.ndarray, "..."]:
        """The values, or a part of them, mapped into memory: only what is copied from the view is read from the file.

        Args:
            index: slices of the leading axes.
            shape: another shape of equal size, that the array takes before it is indexed.
        """
        if 0 in self.shape:
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

"""Batches of one shape, in an order that seed, epoch and step alone decide."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Bool, Int

from models.errors import UserError

Batch = dict[str, Any]
Read = Callable[[Int[np.ndarray, " B"]], Batch]
"""Row numbers -> the batch of these rows."""
AHEAD = 4  # batches prepared ahead


def reader(arrays: Mapping[str, np.ndarray]) -> Read:
    """Reads rows of arrays that are in memory."""
    return lambda rows: {name: array[rows] for name, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Shuffled epochs; rows that fill no whole batch at an epoch's end are left out, others each time.

    A run that resumes at (epoch, step) sees the batches that it would have seen.

    Attributes:
        rows: number of rows of the data.
        batch: rows of a batch.
        seed: of the order.
        read: makes a batch.
    """

    rows: int
    batch: int
    seed: int
    read: Read

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= self.rows:
            raise UserError(f"Batches of {self.batch} cannot be made of {self.rows} rows; take 1 to {self.rows}.")

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.rows // self.batch

    def order(self, epoch: int) -> Int[np.ndarray, "steps B"]:
        """Row numbers of all batches of an epoch."""
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return shuffled[: self.steps * self.batch].reshape(self.steps, self.batch)

    def at(self, epoch: int, step: int) -> Batch:
        """The batch of a step, counted from 0 in its epoch."""
        return self.read(self.order(epoch)[step])

    def stream(self, epoch: int, step: int, epochs: int) -> Iterator[Batch]:
        """All batches from a step on until `epochs` epochs are over, prepared ahead by a thread."""
        return self.batches(epoch * self.steps + step, epochs * self.steps)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches by their numbers, counted over all epochs, from the first to before the last; see `stream`."""
        if first >= last:
            return iter(())
        numbers = grain.MapDataset.range(first, last)
        made = numbers.map(lambda number: self.at(*divmod(int(number), self.steps)))
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)))


def in_order(rows: int, batch: int, read: Read) -> Iterator[tuple[Batch, Bool[np.ndarray, " B"]]]:
    """All rows once, for evaluation: batches of one shape, and which rows of each count.

    The last batch is filled up with the last row, which does not count again.
    """
    for start in range(0, rows, batch):
        numbers = np.arange(start, start + batch)
        yield read(np.minimum(numbers, rows - 1)), numbers < rows

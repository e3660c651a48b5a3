"""The interface of a task: a model with a loss, and examples that its answers are scored on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import Array, Float
from tokenizers import Tokenizer

from mergenet_jax import LossOutput
from models.errors import UserError
from models.layers.init import Params
from train.mergenet.data import open_examples
from train.mergenet.epochs import Read
from train.mergenet.fixtures.examples import open_fixtures
from train.mergenet.text import Arrays


@dataclasses.dataclass(frozen=True)
class Split:
    """Part of a task's examples.

    Attributes:
        rows: number of rows.
        read: row numbers -> a batch of these rows.
        score: what `Task.answer` made of all rows, in order -> metrics by name.
    """

    rows: int
    read: Read
    score: Callable[[Arrays], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A task's examples, ready for the model.

    Attributes:
        split: one of `train.data.sources.items.SPLITS` -> that part.
        tokenizer: of the texts.
    """

    split: Callable[[str], Split]
    tokenizer: Tokenizer


class Task(Protocol):
    """A model trained for a task. `init`, `loss` and `answer` run inside jit, grad and vmap."""

    @property
    def metrics(self) -> Mapping[str, str]:
        """Names of the metrics, with labels; the first selects the epoch."""
        ...

    def init(self, key: Array) -> tuple[Params, Params]:
        """Parameters to start from, and an empty dict: there are no statistics."""
        ...

    def shapes(self) -> tuple[Params, Params]:
        """As `init`, as ``jax.ShapeDtypeStruct``."""
        ...

    def loss(self, params: Params, stats: Params, batch: Any, key: Array) -> tuple[Float[Array, ""], LossOutput]:
        """Loss of a batch, see `mergenet_jax.LossFn`."""
        ...

    def answer(self, params: Params, batch: Any) -> dict[str, Array]:
        """The answers to be scored, per row."""
        ...

    def prepare(self, data: "Data") -> Examples:
        """Opens the task's examples."""
        ...

    def load(self, folder: Path) -> tuple[Params, Params]:
        """The parameters that `export` wrote."""
        ...

    def export(self, folder: Path, params: Params, tokenizer: Tokenizer) -> None:
        """Writes the model with its tokenizer."""
        ...


@dataclasses.dataclass(frozen=True)
class Data:
    """Where examples come from.

    Attributes:
        source: "tfds", or "fixtures": the few that this repository has.
        most: by split, how many examples are used; 0 for all.
        folder: of data sets that tensorflow-datasets has prepared.
    """

    source: str
    most: Mapping[str, int]
    folder: Path | None = None

    def open(self, name: str, split: str, undecoded: tuple[str, ...] = ()) -> "Part":
        """The examples of a split of a data set, see `open_examples`.

        Raises:
            UserError: as `open_examples`, or if there are none.
        """
        if self.source == "fixtures":
            examples: Sequence[dict[str, Any]] = open_fixtures(name, split)
        else:
            examples = open_examples(name, split, self.folder, undecoded=undecoded)
        if not len(examples):
            raise UserError(f"{name} has no examples to {split}; prepare it again.")
        return Part(examples, min(self.most.get(split, 0) or len(examples), len(examples)))


@dataclasses.dataclass(frozen=True)
class Part(Sequence[dict[str, Any]]):
    """The first `count` of some examples."""

    examples: Sequence[dict[str, Any]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not -self.count <= index < self.count:
            raise IndexError(index)
        return self.examples[int(index) % self.count]

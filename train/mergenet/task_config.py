"""A run whose source and target have tasks, data and batches of their own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import optax

from mergenet_jax import MergeConfig, Pair
from models.errors import UserError
from train.data.sources.items import SPLITS
from train.mergenet.config import SOURCE, TARGET, Direction, exchanged
from train.mergenet.tasks.interface import Task
from train.mergenet.tasks.registry import make_task
from train.mergenet.tasks.spec import TaskSpec

SMALL = {"train": 64, "validation": 16, "test": 16}


@dataclasses.dataclass(frozen=True)
class TaskRecipe:
    """As `train.mergenet.config.Recipe`, for two tasks.

    Attributes:
        source: the task and model that is read.
        target: the one that is written.
        pairs: kernels of the source and of the target.
        self_pairs: kernels of the target and of the target, for the arm "self".
        arm: one of `train.mergenet.arms.ARMS` that does not distil.
        direction: "backward" exchanges source and target, "both" transfers both ways at once.
        merge: options of the transfer.
        plus: options of the transfer in the arms "plus".
        plus_pairs: kernels of the source and of the target in these arms; none for `pairs`.
        init_pairs: those that start as the source's with `plus.init_from_source`, and in the arm "start"; none for
            `plus_pairs`.
        adapter_constant: epochs before the adapter's learning rate falls along half a cosine to 0.
        data: "tfds", or "fixtures", the few examples of this repository.
        epochs: passes over the target's data; the source takes as many steps, of its own.
        train_examples: how many of the training examples of each task are used; 0 for all.
        validation_examples: of the validation examples.
        test_examples: of the test examples.
        source_epochs: of a source that is trained first and then frozen; 0 for as many as `epochs`.
        keep: checkpoints kept.
        check_every: steps between looks at whether the losses are finite.
    """

    SMOKE_DATA: ClassVar[str] = "the few texts and drawn pictures of train/mergenet/fixtures"

    source: TaskSpec
    target: TaskSpec
    pairs: tuple[Pair, ...]
    self_pairs: tuple[Pair, ...] = ()
    arm: str = "mergenet"
    direction: Direction = "forward"
    merge: MergeConfig = MergeConfig()
    plus: MergeConfig = MergeConfig.plus()
    plus_pairs: tuple[Pair, ...] = ()
    init_pairs: tuple[Pair, ...] = ()
    adapter_constant: int = 0
    data: Literal["tfds", "fixtures"] = "tfds"
    epochs: int = 3
    train_examples: int = 0
    validation_examples: int = 0
    test_examples: int = 0
    source_epochs: int = 0
    keep: int = 2
    check_every: int = 50

    def __post_init__(self) -> None:
        for name in ("epochs", "keep", "check_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        counts = tuple(f"{split}_examples" for split in SPLITS)
        for name in (*counts, "source_epochs", "adapter_constant"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}.")

    @property
    def most(self) -> Mapping[str, int]:
        """By split, how many examples of each task are used; 0 for all."""
        return {split: getattr(self, f"{split}_examples") for split in SPLITS}

    def models(self) -> dict[str, Task]:
        """Target and source."""
        return {TARGET: make_task(self.target), SOURCE: make_task(self.source)}

    def loss(self, task: Task) -> Any:
        """Of one of `models`."""
        return task.loss

    def optimizers(self, steps: int) -> dict[str, optax.GradientTransformation]:
        """Theirs, of a run with so many steps an epoch."""
        whole = self.epochs * steps
        return {TARGET: self.target.optimizer.make(whole), SOURCE: self.source.optimizer.make(whole)}

    def directed(self) -> Self:
        """The recipe with source and target exchanged, if it goes backward."""
        return exchanged(self)

    def alone(self) -> Self:
        """The recipe that trains the source alone, as a target."""
        epochs = self.source_epochs or self.epochs
        return dataclasses.replace(self, target=self.source, epochs=epochs, arm="none", direction="forward")

    def smoke_version(self) -> Self:
        """The recipe for a look at whether it runs: tiny models from random weights, six epochs of the fixtures."""
        return dataclasses.replace(
            self,
            source=self.source.smoke_version(),
            target=self.target.smoke_version(),
            pairs=tuple(_shallow(pair) for pair in self.pairs),
            self_pairs=tuple(_shallow(pair) for pair in self.self_pairs),
            merge=_light(self.merge),
            plus=_light(self.plus),
            plus_pairs=tuple(_shallow(pair) for pair in self.plus_pairs),
            init_pairs=tuple(_shallow(pair) for pair in self.init_pairs),
            data="fixtures",
            epochs=6,
            source_epochs=2,
            **{f"{split}_examples": count for split, count in SMALL.items()},
        )


def _light(config: MergeConfig) -> MergeConfig:
    return dataclasses.replace(config, layers=1, heads=4, rank=min(config.rank, 4))


def _shallow(pair: Pair) -> Pair:
    """A pair with the second layer of each model in place of any later one: tiny models have two."""

    def low(path: str) -> str:
        parts = path.split("/")
        return "/".join(str(min(int(part), 1)) if part.isdecimal() else part for part in parts)

    return dataclasses.replace(pair, source=low(pair.source), target=low(pair.target))

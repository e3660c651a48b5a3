"""The training loop's view of a run: its options, and its models, data and compiled parts behind one interface."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mergenet_jax import MergeState
from models.layers.init import Params
from train.mergenet.config import Recipe
from train.mergenet.task_config import TaskRecipe

AnyRecipe = Recipe | TaskRecipe
Scores = dict[str, dict[str, Any]]
"""By model: metrics, each a number or [seeds]."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run to be made.

    Attributes:
        recipe: see there.
        seeds: all are trained at once, as one program.
        workdir: folder for checkpoints, measurements, plot, result and exported models.
        source: folder of an exported model that is the frozen source.
        data_dir: folder of data sets that tensorflow-datasets has prepared.
        log: prints a line.
        skip_damaged: moves damaged checkpoints away and resumes at the newest whole one.
    """

    recipe: AnyRecipe
    seeds: tuple[int, ...]
    workdir: Path
    source: Path | None = None
    data_dir: Path | None = None
    log: Callable[[str], None] = print
    skip_damaged: bool = False


class Trainer(Protocol):
    """The models of a run, made ready with their data. With several seeds all arrays lead with an axis of seeds."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        ...

    @property
    def metrics(self) -> Mapping[str, Mapping[str, str]]:
        """By trained model its metrics with their labels; the first selects the epoch."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Parameters of the trained models."""
        ...

    def start(self, seeds: Sequence[int]) -> MergeState:
        """The state before the first step."""
        ...

    def weights(self, state: MergeState) -> dict[str, tuple[Params, Params]]:
        """Parameters and statistics of the trained models."""
        ...

    def feed(self, epoch: int) -> Iterable[tuple[Any, ...]]:
        """Arguments of each step of an epoch, beside the state."""
        ...

    def step(self, state: MergeState, *inputs: Any) -> tuple[MergeState, dict[str, Any]]:
        """One step; the state is donated. Metrics are by model and transfer."""
        ...

    def choose(self, best: Any, weights: Any, scores: Mapping[str, Any], epoch: Any) -> Any:
        """The best epoch so far, after one with these scores; `best` is donated."""
        ...

    def evaluate(self, weights: Any, split: str) -> Scores:
        """Scores of the trained models."""
        ...

    def export(self, folder: Path, name: str, params: Params, stats: Params) -> None:
        """Writes a trained model."""
        ...

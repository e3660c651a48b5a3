"""Runs of picture classifiers: both models see the same pictures, which lie on the device."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from acckv_jax.sharding import on_host
from mergenet_jax import MergeState
from models.layers.init import Params
from models.placement import divided, place
from train.data.sources.items import Pictures
from train.mergenet.arms import SOURCE, TARGET, Given, set_up
from train.mergenet.checkpoint import export_classifier, load_exported
from train.mergenet.config import ModelSpec, Recipe
from train.mergenet.data import load_pictures
from train.mergenet.epochs import Epochs, in_order
from train.mergenet.program import Program, make_program, per_seed
from train.mergenet.trainer import Run, Scores

EVALUATED = 250  # pictures at a time
METRICS = {"top1": "top-1", "top5": "top-5"}


@dataclasses.dataclass(frozen=True)
class _Data:
    """A split on the device."""

    images: jax.Array
    labels: jax.Array

    @classmethod
    def of(cls, pictures: Pictures, most: int) -> "_Data":
        count = most or None
        return cls(*place((pictures.images[:count], pictures.labels[:count].astype(np.int32))))


class PictureTrainer:
    """See `train.mergenet.trainer.Trainer`."""

    def __init__(self, run: Run, recipe: Recipe, frozen: Path | None) -> None:
        """Loads the pictures to train on and to validate with, and makes the program.

        Args:
            run: its seeds and its folder of data.
            recipe: the run's recipe, directed.
            frozen: folder of the exported classifier that is the frozen source, if any.

        Raises:
            UserError: if data or source cannot be had, or the recipe's arm cannot be set up.
        """
        self.run, self.recipe = run, recipe
        self.parts = {split: self._split(split) for split in ("train", "validation")}
        rows = len(self.parts["train"].labels)
        self.orders = [Epochs(rows, recipe.batch, seed, lambda rows: {"rows": rows}) for seed in run.seeds]
        given: Given | None = frozen and load_exported(frozen, recipe.source, recipe.classes)
        self.program: Program = make_program(recipe, set_up(recipe, self.steps, given), self.steps, len(run.seeds))
        self.metrics = {name: METRICS for name in self.program.setup.trained}
        self.sizes = {name: _size(model.shapes()[0]) for name, model in self.program.setup.trained.items()}
        self.step, self.choose = self.program.step, self.program.choose

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.orders[0].steps

    def start(self, seeds: Sequence[int]) -> MergeState:
        """The state before the first step."""
        return self.program.start(seeds)

    def weights(self, state: MergeState) -> dict[str, Given]:
        """Parameters and statistics of the trained classifiers."""
        return self.program.weights(state)

    def feed(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        """Pictures, labels, the rows of each step, and the seeds."""
        data = self.parts["train"]
        seeds = per_seed(self.run.seeds)
        rows = np.stack([order.order(epoch) for order in self.orders], 1)  # [steps, seeds, B]
        for own in rows:
            yield data.images, data.labels, divided(per_seed(list(own)), axis=seeds.ndim), seeds

    def evaluate(self, weights: Any, split: str) -> Scores:
        """Mean loss, top-1 and top-5 of all trained classifiers: floats, or [seeds]."""
        data = self.parts[split] if split in self.parts else self._split(split)
        rows = len(data.labels)
        found = [
            self.program.evaluate(weights, data.images, data.labels, *divided((batch["rows"], counts)))
            for batch, counts in in_order(rows, min(EVALUATED, rows), lambda rows: {"rows": rows.astype(np.int32)})
        ]
        sums = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *jax.tree.map(on_host, found))
        return jax.tree.map(lambda x: x / rows, sums)

    def export(self, folder: Path, name: str, params: Params, stats: Params) -> None:
        """Writes a trained classifier."""
        specs: Mapping[str, ModelSpec] = {TARGET: self.recipe.target, SOURCE: self.recipe.source}
        export_classifier(folder, specs[name], self.recipe.classes, params, stats)

    def _split(self, split: str) -> _Data:
        most = getattr(self.recipe, f"{split}_pictures")
        return _Data.of(load_pictures(self.recipe.data, split, self.run.data_dir), most)


def _size(shapes: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(shapes))

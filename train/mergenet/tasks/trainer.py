"""Runs of two tasks: each model sees batches of its own data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from acckv_jax.sharding import on_host
from mergenet_jax import MergeState, train_step
from models.layers.init import Params
from models.placement import divided
from train.mergenet.arms import SOURCE, TARGET, Given, set_up
from train.mergenet.epochs import Epochs, in_order
from train.mergenet.program import begin, compiled_step, make_choice
from train.mergenet.task_config import TaskRecipe
from train.mergenet.tasks.interface import Data, Examples, Split
from train.mergenet.tasks.registry import make_task
from train.mergenet.tasks.spec import TaskSpec
from train.mergenet.trainer import Run, Scores

EVALUATED = 64  # rows at a time


class TaskTrainer:
    """See `train.mergenet.trainer.Trainer`. An epoch is one of the target's data."""

    def __init__(self, run: Run, recipe: TaskRecipe, frozen: Path | None) -> None:
        """Opens the examples of the models that are trained, and makes the program.

        Args:
            run: its seeds, its folder of data, and where it logs what the models start from.
            recipe: the run's recipe, directed.
            frozen: folder of the exported model that is the frozen source, if any.

        Raises:
            UserError: if data or models cannot be had, or the recipe's arm cannot be set up.
        """
        self.run = run
        self.specs = {TARGET: recipe.target, SOURCE: recipe.source}
        given: Given | None = frozen and make_task(recipe.source).load(frozen)
        data = Data(recipe.data, recipe.most, run.data_dir)
        self.examples: dict[str, Examples] = {TARGET: make_task(recipe.target).prepare(data)}
        self.parts: dict[tuple[str, str], Split] = {}
        self.setup = set_up(recipe, self.steps, given)
        for name, task in self.setup.trained.items():
            if name != TARGET:
                self.examples[name] = task.prepare(data)
        for name in self.setup.trained:
            run.log(f"{name}: {_told(name, self.specs[name])}")
        self.metrics = {name: task.metrics for name, task in self.setup.trained.items()}
        self.sizes = {
            name: sum(x.size for x in jax.tree.leaves(task.shapes()[0])) for name, task in self.setup.trained.items()
        }
        train = train_step(self.setup.learners, self.setup.transfers)

        def step(state: MergeState, batches: Any) -> tuple[MergeState, Any]:
            state, metrics = train(self.setup.share(state), batches)
            return state, self.setup.by_name(metrics)

        answers = {name: task.answer for name, task in self.setup.trained.items()}
        if (seeds := len(run.seeds)) > 1:
            answers = {name: jax.vmap(answer, in_axes=(0, None)) for name, answer in answers.items()}
        self.step = compiled_step(step, (0,), seeds)
        self.answers = {name: jax.jit(answer) for name, answer in answers.items()}
        self.choose = make_choice({name: next(iter(metrics)) for name, metrics in self.metrics.items()}, seeds)

    def _part(self, name: str, split: str) -> Split:
        if (name, split) not in self.parts:
            self.parts[name, split] = self.examples[name].split(split)
        return self.parts[name, split]

    def _orders(self, name: str) -> list[Epochs]:
        part = self._part(name, "train")
        return [Epochs(part.rows, self.specs[name].batch, seed, part.read) for seed in self.run.seeds]

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self._orders(TARGET)[0].steps

    def start(self, seeds: Sequence[int]) -> MergeState:
        """The state before the first step."""
        read = any(spec.weights or spec.vision_weights for spec in self.specs.values())
        return begin(self.setup, seeds, compiled=not read)

    def weights(self, state: MergeState) -> dict[str, Given]:
        """Parameters of the trained models."""
        return self.setup.weights(state)

    def feed(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        """Batches by model; the source's continue over the target's epochs."""
        first, last = epoch * self.steps, (epoch + 1) * self.steps
        streams = {name: [order.batches(first, last) for order in self._orders(name)] for name in self.setup.trained}
        for _ in range(first, last):
            batches = {name: _joined([next(stream) for stream in own]) for name, own in streams.items()}
            yield (divided(batches, axis=int(len(self.run.seeds) > 1)),)

    def evaluate(self, weights: Any, split: str) -> Scores:
        """Metrics of the trained models' tasks: floats, or [seeds]."""
        return {name: self._scored(name, of[0], split) for name, of in weights.items()}

    def _scored(self, name: str, params: Params, split: str) -> dict[str, Any]:
        part = self._part(name, split)
        axis = int(len(self.run.seeds) > 1)
        found = []
        for batch, counts in in_order(part.rows, min(EVALUATED, part.rows), part.read):
            answers = jax.tree.map(on_host, self.answers[name](params, divided(batch)))
            found.append(jax.tree.map(lambda x, counts=counts: np.compress(counts, x, axis), answers))
        whole = {key: np.concatenate([answers[key] for answers in found], axis) for key in found[0]}
        if not axis:
            return part.score(whole)
        each = [part.score({key: value[i] for key, value in whole.items()}) for i in range(len(self.run.seeds))]
        return {metric: np.asarray([scores[metric] for scores in each]) for metric in each[0]}

    def export(self, folder: Path, name: str, params: Params, stats: Params) -> None:
        """Writes a trained model with its tokenizer."""
        del stats
        self.setup.trained[name].export(folder, params, self.examples[name].tokenizer)


def _joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch, or those of several seeds."""
    return batches[0] if len(batches) == 1 else jax.tree.map(lambda *x: np.stack(x), *batches)


def _told(name: str, spec: TaskSpec) -> str:
    """A sentence about a model's initial weights."""
    if spec.weights is None:
        text = f"{spec.text} from random weights with a vocabulary of the training texts (no --{name}.weights is given)"
    else:
        text = f"text encoder and tokenizer of {spec.weights}"
    if not spec.pictured:
        return f"{spec.task}, {text}"
    if spec.vision_weights is None:
        return f"{spec.task}, {text}; {spec.vision} from random weights (no --{name}.vision-weights is given)"
    return f"{spec.task}, {text}; vision tower of {spec.vision_weights}"

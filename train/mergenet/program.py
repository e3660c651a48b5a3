"""The compiled parts of a run: a step, an evaluation, the choice of the best epoch; of one seed, or of several at once.

Several seeds are one program under `jax.vmap`: everything has a leading axis of seeds but `step`, which they share, so
that a step without a transfer does not compute one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from mergenet_jax import MergeState, state_shardings, train_step
from models.layers.init import Params
from train.mergenet.arms import Setup
from train.mergenet.augment import STATISTICS, augment, normalise
from train.mergenet.config import Recipe
from train.mergenet.distillation import cross_entropy

TOP = 5
Best = dict[str, Any]
"""By model: params, stats, the metric that selects and number of the epoch that validated best."""
DATA = 0x444154
AXES: dict[str, Any] = {"models": 0, "adapters": 0, "step": None, "key": 0}
OF_SEEDS = MergeState(**AXES)
"""Where the leaves of a state have the axis of seeds."""


@dataclasses.dataclass(frozen=True)
class Program:
    """See the module.

    Attributes:
        step: (state, images, labels, rows, seeds) -> (state, metrics by model and transfer); the state is donated.
        evaluate: (weights, images, labels, rows, counts) -> by model sums of loss, top1 and top5.
        choose: see `make_choice`.
        start: seeds -> state.
    """

    step: Callable
    evaluate: Callable
    choose: Callable
    start: Callable[[Sequence[int]], MergeState]
    setup: Setup

    def weights(self, state: MergeState) -> Any:
        """See `Setup.weights`."""
        return self.setup.weights(state)


def make_program(recipe: Recipe, setup: Setup, steps: int, seeds: int) -> Program:
    """The program of an arm, for so many seeds.

    Args:
        recipe: of the run.
        setup: of the arm.
        steps: of an epoch.
        seeds: how many are trained at once.
    """
    statistics = STATISTICS[recipe.data]
    train = train_step(setup.learners, setup.transfers)

    def step(
        state: MergeState, images: UInt8[Array, "n y x 3"], labels: Int[Array, " n"], rows: Any, seed: Any
    ) -> tuple[MergeState, Any]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(DATA), seed), state.step)
        pictures = augment(images[rows], key, statistics, recipe.augmentation)
        batch = {"images": pictures, "labels": labels[rows], "epoch": 1 + state.step // steps}
        state, metrics = train(setup.share(state), {name: batch for name in setup.learners})
        return state, setup.by_name(metrics)

    def evaluate(weights: Any, images: Any, labels: Any, rows: Any, counts: Any) -> dict[str, dict[str, Array]]:
        pictures, own = normalise(images[rows], statistics), labels[rows]
        return {
            name: _scores(setup.trained[name].apply(of[0], of[1], pictures, train=False)[0].logits, own, counts)
            for name, of in weights.items()
        }

    if seeds > 1:
        evaluate = jax.vmap(evaluate, in_axes=(0, None, None, None, None))
    return Program(
        compiled_step(step, (None, None, 0, 0), seeds),
        jax.jit(evaluate),
        make_choice({name: "top1" for name in setup.trained}, seeds),
        lambda named: begin(setup, named),
        setup,
    )


def compiled_step(step: Callable, axes: Sequence[int | None], seeds: int) -> Callable:
    """A step of one seed, or of several at once, compiled. The state is donated, and stays where `begin` has put it.

    Args:
        step: (state, *inputs) -> (state, metrics).
        axes: of the seeds in each input.
        seeds: how many are trained at once.
    """
    whole = jax.vmap(step, in_axes=(OF_SEEDS, *axes), out_axes=(OF_SEEDS, 0)) if seeds > 1 else step

    def staying(state: MergeState, *inputs: Any) -> tuple[MergeState, Any]:
        state, metrics = whole(state, *inputs)
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty:
            state = jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))
        return state, metrics

    return jax.jit(staying, donate_argnums=0)


def make_choice(selecting: Mapping[str, str], seeds: int) -> Callable:
    """A function (best, weights, scores by model, epoch) -> best; it is donated.

    Args:
        selecting: by model, the name of its score.
        seeds: how many are trained at once.
    """

    def choose(best: Best, weights: Any, scores: dict[str, Array], epoch: Array) -> Best:
        now = {name: _record(of, selecting[name], scores[name], epoch) for name, of in weights.items()}
        better = {name: scores[name] > best[name][metric] for name, metric in selecting.items()}
        return {
            name: jax.tree.map(lambda a, b, n=name: jnp.where(better[n], a, b), now[name], best[name]) for name in best
        }

    if seeds > 1:
        choose = jax.vmap(choose, in_axes=(0, 0, 0, None))
    return jax.jit(choose, donate_argnums=0)


def begin(setup: Setup, seeds: Sequence[int], *, compiled: bool = True) -> MergeState:
    """The state before the first step, on the mesh that is set, if any.

    Args:
        setup: of the arm.
        seeds: one, or several to be trained at once.
        compiled: False where models are read from files, which would become constants of a program.
    """
    # Random numbers of many shapes take XLA long to optimise, and are drawn once.
    options = {"xla_backend_optimization_level": 0}
    start = jax.jit(setup.start, compiler_options=options) if compiled else setup.start
    state, *others = (start(np.uint32(seed), setup.given) for seed in seeds)
    if others:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, *others)
        state = dataclasses.replace(stacked, step=state.step)
    mesh = jax.sharding.get_mesh()
    return state if mesh.empty else jax.jit(lambda x: x, out_shardings=state_shardings(mesh, state))(state)


def per_seed(values: Sequence[Any]) -> np.ndarray:
    """An argument of integers that differs between seeds."""
    return np.asarray(np.stack(values) if len(values) > 1 else values[0], np.int32)


def first_best(weights: Any, selecting: Mapping[str, str], seeds: int) -> Best:
    """The best epoch before the first: any epoch is better."""
    shape = (seeds,) if seeds > 1 else ()
    return {  # copies: everything is donated
        name: _record(
            jax.tree.map(jnp.copy, of), selecting[name], np.full(shape, -1, np.float32), np.zeros(shape, np.int32)
        )
        for name, of in weights.items()
    }


def _record(weights: tuple[Params, Params], metric: str, score: Any, epoch: Any) -> Params:
    return {"params": weights[0], "stats": weights[1], metric: score, "epoch": epoch}


def _scores(logits: Float[Array, "B C"], labels: Int[Array, " B"], counts: Array) -> dict[str, Array]:
    """Sums over the rows that count; a label is among the top k if fewer than k classes come before it."""
    own = jnp.take_along_axis(logits, labels[:, None], -1)
    earlier = (logits == own) & (jnp.arange(logits.shape[-1])[None] < labels[:, None])
    place = jnp.sum((logits > own) | earlier | jnp.isnan(logits), -1)
    loss = jax.vmap(lambda row, label: cross_entropy(row[None], label[None]))(logits, labels)
    each = {"loss": loss, "top1": place < 1, "top5": place < TOP}
    return {name: jnp.sum(jnp.where(counts, x.astype(jnp.float32), 0.0)) for name, x in each.items()}

"""The training loop: epochs, validation, the best epoch, checkpoints, and the test at the end."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from acckv_jax.sharding import on_host
from mergenet_jax import check_finite
from models.devices import from_first, is_first
from models.errors import UserError
from models.files import write_text
from models.readers.json_object import read_object
from train.checkpoint import finish, finishing, manager
from train.log import MetricsLog
from train.mergenet.arms import SOURCE, TARGET, check_direction, find_arm
from train.mergenet.checkpoint import check_claim, claim, restore_state, save_state
from train.mergenet.config import Recipe
from train.mergenet.identity import digest, relevant
from train.mergenet.pictures import PictureTrainer
from train.mergenet.program import Best, first_best
from train.mergenet.report import averages, columns, panels, plot
from train.mergenet.tasks.trainer import TaskTrainer
from train.mergenet.trainer import AnyRecipe, Run, Scores, Trainer
from train.preemption import preemption, stopped

RESULT = "result.json"


def train(run: Run, stop_at: int | None = None) -> dict[str, Any] | None:
    """Trains from the newest checkpoint, or from the start, to the end, on the mesh that is set, if any.

    SIGTERM ends the process after the running step, with exit status 143: the last whole epoch is saved.

    Args:
        run: what to do.
        stop_at: stop after so many epochs of the whole run, with a checkpoint.

    Returns:
        What result.json holds; None if the run was stopped before its end.

    Raises:
        UserError: if the folder holds another run, the data or the source cannot be had, or values are not finite; the
            last checkpoint then is of an epoch where they were.
    """
    recipe = run.recipe.directed()
    check_seeds(run.seeds)
    check_direction(recipe, run.source)
    identity = {"recipe": dataclasses.asdict(relevant(recipe)), "seeds": list(run.seeds)}
    identity |= {"source": run.source and digest(run.source)}
    check_claim(run.workdir, identity)
    if from_first((run.workdir / RESULT).is_file()):
        run.log(f"{run.workdir} is finished: {run.workdir / RESULT}")
        return read_object(run.workdir / RESULT)
    trainer = _trainer(run, recipe)
    try:
        state = trainer.start(run.seeds)
    except ValueError as problem:  # of mergenet_jax: paths and shapes that do not fit
        raise UserError(str(problem)) from problem
    if is_first():
        claim(run.workdir, identity)
    best = first_best(trainer.weights(state), selecting(trainer), len(run.seeds))
    checkpoints = manager(run.workdir / "checkpoints", recipe.keep)
    start = 0
    if (found := restore_state(checkpoints, (state, best), skip_damaged=run.skip_damaged)) is not None:
        start, (state, best) = found
        run.log(f"resumed after epoch {start}")
    table = run.workdir / "metrics.csv"
    rows = MetricsLog(table, start * trainer.steps, columns(trainer.metrics)) if is_first() else None
    last = min(recipe.epochs, stop_at or recipe.epochs)
    with preemption() as preempted:
        for epoch in range(start, last):
            with finishing(checkpoints):  # the epoch before, meanwhile
                state, best = _epoch(run, trainer, rows, epoch, state, best, preempted)
            save_state(checkpoints, epoch + 1, (state, best))
            if rows is not None:
                plot(rows.path, run.workdir / "metrics.png", panels(trainer.metrics))
    finish(checkpoints)
    checkpoints.close()
    return _finish(run, recipe, trainer, best) if last == recipe.epochs else None


def check_seeds(seeds: Sequence[int]) -> None:
    """Whether seeds can be trained.

    Raises:
        UserError: if there are none, two alike, or one that is no seed.
    """
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UserError(f"Seeds must be one or more, all different, not {seeds}.")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"Seeds must be from 0 to {2**31 - 1}, not {seeds}.")


def _trainer(run: Run, recipe: AnyRecipe) -> Trainer:
    frozen = run.source
    if find_arm(recipe.arm).source == "frozen" and frozen is None:
        folder = run.workdir / SOURCE
        run.log(f"training the source first, in {folder}")
        train(Run(recipe.alone(), run.seeds[:1], folder, None, run.data_dir, run.log, run.skip_damaged))
        frozen = folder / "export" / TARGET
    return PictureTrainer(run, recipe, frozen) if isinstance(recipe, Recipe) else TaskTrainer(run, recipe, frozen)


def selecting(trainer: Trainer) -> dict[str, str]:
    """By model, the metric that selects the epoch."""
    return {name: next(iter(metrics)) for name, metrics in trainer.metrics.items()}


def _epoch(
    run: Run,
    trainer: Trainer,
    rows: MetricsLog | None,
    epoch: int,
    state: Any,
    best: Best,
    preempted: Callable[[int], bool],
) -> tuple[Any, Best]:
    measured, clock = [], time.perf_counter()
    for step, inputs in enumerate(trainer.feed(epoch)):
        state, metrics = trainer.step(state, *inputs)
        measured.append(metrics)
        if (step + 1) % run.recipe.check_every == 0 or step + 1 == trainer.steps:
            _check(metrics, epoch, step, run.workdir)
        if preempted(epoch * trainer.steps + step + 1):
            raise stopped(f"in epoch {epoch + 1}, which begins anew")
    measured = jax.tree.map(on_host, measured)
    for step, metrics in enumerate(measured):
        _check(metrics, epoch, step, run.workdir)
    seconds = (time.perf_counter() - clock) / trainer.steps
    weights = trainer.weights(state)
    scores = trainer.evaluate(weights, "validation")
    selected = selecting(trainer)
    chosen = {name: np.asarray(values[selected[name]], np.float32) for name, values in scores.items()}
    best = trainer.choose(best, weights, chosen, np.int32(epoch + 1))
    numbers = averages(measured)
    for kind, found in (("train", numbers), ("validation", scores)):
        for name, values in found.items():
            for i, seed in enumerate(run.seeds):
                row = {key: f"{np.ravel(value)[i]:.6g}" for key, value in values.items()}
                label = "transfer" if "transfers" in values else kind
                timed = {"seconds": f"{seconds:.4g}"} if kind == "train" else {}
                place = {"step": (epoch + 1) * trainer.steps, "epoch": epoch + 1, "seed": seed, "name": name}
                if rows is not None:
                    rows.write(**place, kind=label, **row, **timed)
    run.log(_line(epoch + 1, run.recipe.epochs, numbers, chosen, seconds))
    return state, best


def _check(metrics: Any, epoch: int, step: int, workdir: Path) -> None:
    try:
        check_finite({name: _worst(values) for name, values in metrics.items()})
    except ValueError as problem:
        kept = f" {workdir} keeps the epoch before." if epoch else ""
        raise UserError(f"Stopped in epoch {epoch + 1}, step {step + 1}: {problem}{kept}") from None


def _worst(values: dict[str, Any]) -> dict[str, Any]:
    """One number for all seeds, not finite if one of them is not; of flags the least."""
    return {key: np.min(value) if np.isfinite(value).all() else np.nan for key, value in values.items()}


def _line(epoch: int, epochs: int, numbers: Scores, chosen: dict[str, Any], seconds: float) -> str:
    models = [
        f"{name} loss {np.mean(numbers[name]['loss']):.3f} validation {np.mean(value):.4f}"
        for name, value in chosen.items()
    ]
    transfers = [
        f"{name} norm x{np.mean(values['norm']):.3g} cosine {np.mean(values['cosine']):.3f}"
        for name, values in numbers.items()
        if "transfers" in values
    ]
    return f"epoch {epoch}/{epochs}: " + "; ".join(models + transfers) + f"; {seconds * 1e3:.0f} ms/step"


def _finish(run: Run, recipe: AnyRecipe, trainer: Trainer, best: Best) -> dict[str, Any]:
    """Measures the test part once, with each model's best epoch, and writes the result and the models."""
    scores = trainer.evaluate({name: (of["params"], of["stats"]) for name, of in best.items()}, "test")
    best = jax.tree.map(on_host, best)
    chosen = selecting(trainer)
    seeds: dict[str, Any] = {}
    for i, seed in enumerate(run.seeds):
        own = best if len(run.seeds) == 1 else jax.tree.map(lambda x, i=i: x[i], best)
        folder = run.workdir / "export" / (f"seed{seed}" if len(run.seeds) > 1 else "")
        seeds[str(seed)] = {
            name: {
                "epoch": int(of["epoch"]),
                f"validation_{chosen[name]}": round(float(of[chosen[name]]), 6),
                **{f"test_{key}": round(float(np.ravel(value)[i]), 6) for key, value in scores[name].items()},
            }
            for name, of in own.items()
        }
        for name, of in own.items() if is_first() else ():
            trainer.export(folder / name, name, of["params"], of["stats"])
    result = {"recipe": dataclasses.asdict(recipe), "parameters": trainer.sizes, "seeds": seeds}
    result["source"] = run.source and str(run.source)
    if is_first():
        write_text(run.workdir / RESULT, json.dumps(result, indent=2) + "\n")
    from_first(None)  # the others may read what is written now
    for seed, found in seeds.items():
        for name, of in found.items():
            shown = ", ".join(f"{label} {of[f'test_{metric}']:.4f}" for metric, label in trainer.metrics[name].items())
            validated = of[f"validation_{chosen[name]}"]
            run.log(f"seed {seed} {name}: test {shown} (epoch {of['epoch']}, validation {validated:.4f})")
    return result

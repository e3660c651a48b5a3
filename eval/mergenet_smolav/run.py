"""Runs arms and seeds, each once, and keeps what was measured."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.mergenet_smolav.materials import Materials
from mergenet_jax import check_finite, export
from models.errors import UserError
from models.files import write_text
from models.layers.init import abstract_params
from models.readers.json_object import read_object
from models.smolav.modeling import MediaEmbedder
from train.mergenet.arms import SOURCE, TARGET
from train.mergenet.av.arms import Setup, set_up
from train.mergenet.av.config import AV_ARMS, Recipe, find_arm
from train.mergenet.checkpoint import check_claim, claim
from train.mergenet.loop import check_seeds
from train.mergenet.report import averages
from train.smolav.align import Examples

TRAINED = "trained"
"""Names the measurements of the source itself."""


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment to be made.

    Attributes:
        recipe: see there.
        arms: names.
        seeds: of every arm.
        workdir: where the results lie: ARM/seedN.json.
        load: makes the materials; called only where something is left to do.
        log: prints a line.
    """

    recipe: Recipe
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    workdir: Path
    load: Callable[[Recipe], Materials] = Materials.load
    log: Callable[[str], None] = print


def run(wanted: Run) -> dict[str, dict[int, dict[str, Any]]]:
    """Makes what is not there yet.

    Returns:
        All results in the folder, by arm and seed; of the trained SmolAV as arm `TRAINED`, seed 0.

    Raises:
        UserError: if an arm or the folder does not fit, something cannot be had, or values are not finite.
    """
    check_seeds(wanted.seeds)
    if not wanted.arms or len(set(wanted.arms)) != len(wanted.arms):
        raise UserError(f"Arms must be one or more, all different, not {wanted.arms}.")
    for arm in wanted.arms:
        find_arm(arm)
    identity = {"recipe": dataclasses.asdict(wanted.recipe)}
    check_claim(wanted.workdir, identity)
    left = [(arm, seed) for arm in wanted.arms for seed in wanted.seeds if not _path(wanted, arm, seed).is_file()]
    done = len(wanted.arms) * len(wanted.seeds) - len(left)
    if done:
        wanted.log(f"{done} of {done + len(left)} are there already")
    if left:
        materials = wanted.load(wanted.recipe)
        setups = {arm: _set_up(materials, arm) for arm in dict(left)}
        claim(wanted.workdir, identity)
        _make(wanted, materials, setups, left)
    return read_results(wanted.workdir)


def read_results(workdir: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """All results in a folder, by arm and seed.

    Raises:
        UserError: if one cannot be read.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in (*AV_ARMS, TRAINED):
        for path in sorted((workdir / arm).glob("seed*.json")):
            if (number := path.stem.removeprefix("seed")).isdigit():
                found.setdefault(arm, {})[int(number)] = one = read_object(path)
                if not all(isinstance(one.get(key), dict) for key in ("right", "asked")):
                    raise UserError(f"{path} holds no result; remove it, and it is measured again.")
    return found


def _path(wanted: Run, arm: str, seed: int) -> Path:
    return wanted.workdir / arm / f"seed{seed}.json"


def _make(wanted: Run, materials: Materials, setups: dict[str, Setup], left: Sequence[tuple[str, int]]) -> None:
    if not (path := _path(wanted, TRAINED, 0)).is_file():
        right = materials.measure(materials.trained["media"], trained=True)
        asked = right.pop("asked")
        _write(path, {"arm": TRAINED, "seed": 0, "right": right, "asked": asked})
    everything = materials.training()
    for arm, seed in left:
        found = _one(materials, setups[arm], everything, seed)
        _write(_path(wanted, arm, seed), {"arm": arm, "seed": seed, **found})
        shares = ", ".join(f"{name} {found['right'][name]:.3f}" for name in ("pictures", "sounds", "questions"))
        wanted.log(f"{arm} seed {seed}: right {shares}; {found['seconds']:.0f} s of training")


def _set_up(materials: Materials, arm: str) -> Setup:
    """The arm, of which it is known that it can start.

    Raises:
        UserError: if the pairs do not fit the models.
    """
    sizes = {SOURCE: materials.model, TARGET: materials.target}
    setup = set_up(materials.recipe, arm, sizes, materials.table)
    shapes = {
        name: abstract_params(lambda c=config: MediaEmbedder(c, rngs=nnx.Rngs(0)))[1] for name, config in sizes.items()
    }
    try:
        jax.eval_shape(setup.start, 0, shapes[TARGET], shapes[SOURCE])
    except ValueError as problem:
        raise UserError(str(problem)) from problem
    return setup


def _one(materials: Materials, setup: Setup, everything: Examples, seed: int) -> dict[str, Any]:
    recipe, own = materials.recipe, materials.training(seed)
    examples = {TARGET: own, SOURCE: everything}
    orders = {name: np.random.default_rng([seed, number]) for number, name in enumerate(examples, start=1)}
    learning = [name for name, learner in setup.learners.items() if learner is not None]
    # Random numbers of many shapes take XLA long to optimise, and are drawn once.
    start = jax.jit(setup.start, compiler_options={"xla_backend_optimization_level": 0})
    state = start(jnp.uint32(seed), own.initial_media(materials.target, seed), materials.trained["media"])
    measured, clock = [], time.perf_counter()
    for _ in range(recipe.steps):
        batches = {
            name: examples[name].draw(orders[name], recipe.batch_pictures, recipe.batch_sounds) for name in learning
        }
        state, metrics = setup.step(state, batches)
        measured.append(metrics)
    measured = jax.device_get(measured)
    for step, metrics in enumerate(measured):
        try:
            check_finite(metrics)
        except ValueError as problem:
            raise UserError(f"Seed {seed} failed in step {step + 1} of {recipe.steps}: {problem}") from None
    seconds = time.perf_counter() - clock
    right = materials.measure(export(state, TARGET))
    asked = right.pop("asked")
    last = measured[-min(20, len(measured)) :]
    return {
        "right": right,
        "asked": asked,
        "loss": {name: float(np.mean([metrics[name]["loss"] for metrics in last])) for name in learning},
        "transfers": {
            name: {key: float(value) for key, value in values.items()}
            for name, values in averages(measured).items()
            if "transfers" in values
        },
        "seconds": round(seconds, 2),
    }


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")

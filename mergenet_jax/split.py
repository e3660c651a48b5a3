"""Sources and targets on two parts of the devices: each model's step runs on its own part, both at the same time.

To the targets' part a source is a frozen model of which nothing is there but the kernels that are read; they are sent
before every step, and nothing else is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from mergenet_jax import paths
from mergenet_jax.learner import Learner, ModelState
from mergenet_jax.sharding import state_shardings
from mergenet_jax.state import MergeState
from mergenet_jax.step import make_train_step
from mergenet_jax.transfer import Transfer


class Halves(NamedTuple):
    """The state of joint training in two parts.

    Attributes:
        source: models that are read.
        target: models that are written and all adapters, with the kernels that are read.

    Example:
        >>> mn.Halves(source=state, target=state).source.step.shape
        ()
    """

    source: MergeState
    target: MergeState


SplitStep = Callable[[Halves, Mapping[str, Any]], tuple[Halves, dict[str, Any]]]


def split_state(state: MergeState, transfers: tuple[Transfer, ...], source: Mesh, target: Mesh) -> Halves:
    """Puts the state of `init_state` on two meshes that share no device; it must not be used afterwards.

    Raises:
        ValueError: if a model is both read by another and written, or the meshes share a device.

    Example:
        >>> auto = (jax.sharding.AxisType.Auto,)
        >>> meshes = [jax.make_mesh((1,), ("data",), auto, devices=[device]) for device in jax.devices()[:2]]
        >>> halves = mn.split_state(mn.init_state(learners, transfers, params, jax.random.key(0)), transfers, *meshes)
        >>> sorted(halves.source.models), sorted(halves.target.models)
        (['teacher'], ['student', 'teacher'])
    """
    both = set(source.devices.flat) & set(target.devices.flat)
    if both:
        raise ValueError(f"both meshes have {sorted(map(str, both))[0]}; give each its own devices.")
    sources, targets = {t.source for t in transfers if t.source != t.target}, {t.target for t in transfers}
    if circular := sources & targets:
        names = ", ".join(sorted(circular))
        raise ValueError(f"models that are both read and written ({names}) cannot be split off; use one mesh.")
    here = {name: model for name, model in state.models.items() if name in sources}
    there = {name: model for name, model in state.models.items() if name not in sources}
    read = {name: ModelState(kernels, None, None) for name, kernels in _read(here, transfers).items()}
    halves = Halves(
        dataclasses.replace(state, models=here, adapters=()), dataclasses.replace(state, models=there | read)
    )
    shardings = Halves(state_shardings(source, halves.source), state_shardings(target, halves.target))
    return jax.device_put(halves, shardings)


def make_split_step(
    learners: Mapping[str, Learner | None], transfers: tuple[Transfer, ...], halves: Halves
) -> SplitStep:
    """The step of `make_train_step` with the models on two parts of the devices; the state is donated.

    Args:
        learners: as given to `init_state`.
        transfers: as given to `init_state`.
        halves: of `split_state`; where its arrays lie.

    Returns:
        step(halves, batches by name) -> (halves, metrics). Neither part waits for the other but for the kernels.

    Example:
        >>> auto = (jax.sharding.AxisType.Auto,)
        >>> meshes = [jax.make_mesh((1,), ("data",), auto, devices=[device]) for device in jax.devices()[:2]]
        >>> halves = mn.split_state(mn.init_state(learners, transfers, params, jax.random.key(0)), transfers, *meshes)
        >>> split_step = mn.make_split_step(learners, transfers, halves)
    """
    shardings: Halves = jax.tree.map(lambda x: x.sharding, halves)
    own = [name for name in learners if name in halves.source.models]
    # Both know all names: a model's random keys depend on its place among them.
    source_step = make_train_step(
        {name: learner if name in own else None for name, learner in learners.items()},
        (),
        shardings=shardings.source,
    )
    target_step = make_train_step(
        {name: None if name in own else learner for name, learner in learners.items()},
        transfers,
        shardings=shardings.target,
    )

    def step(halves: Halves, batches: Mapping[str, Any]) -> tuple[Halves, dict[str, Any]]:
        read = _read(halves.source.models, transfers)
        models = dict(halves.target.models)
        for name, kernels in read.items():
            kernels = jax.device_put(kernels, shardings.target.models[name].params)
            models[name] = dataclasses.replace(models[name], params=kernels)
        target = dataclasses.replace(halves.target, models=models)
        source, own_metrics = source_step(halves.source, {name: batches[name] for name in own if name in batches})
        target, metrics = target_step(target, {name: batch for name, batch in batches.items() if name not in own})
        return Halves(source, target), own_metrics | metrics

    return step


def _read(models: Mapping[str, ModelState], transfers: tuple[Transfer, ...]) -> dict[str, dict[str, Any]]:
    """The kernels that transfers read of these models, by model and path."""
    found: dict[str, dict[str, Any]] = {name: {} for name in models}
    for transfer in transfers:
        if transfer.source in models:
            for pair in transfer.pairs:
                found[transfer.source][pair.source] = paths.get(models[transfer.source].params, pair.source)
    return found

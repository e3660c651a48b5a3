"""One step of joint training: transfer, every model's own step, and the adapter updates."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from mergenet_jax import paths
from mergenet_jax.adapter import apply_adapter
from mergenet_jax.config import MergeConfig
from mergenet_jax.learner import Learner, ModelState, updated
from mergenet_jax.low_rank import materialise
from mergenet_jax.state import MergeState, adapter_optimizer
from mergenet_jax.transfer import Matrices, Transfer, read, write, written

Step = Callable[[MergeState, Mapping[str, Any]], tuple[MergeState, dict[str, Any]]]
TINY = 1e-12
LOSSES = 1 << 16
"""Number of the first learner's random key; those of transfers begin at 0."""


def train_step(learners: Mapping[str, Learner | None], transfers: tuple[Transfer, ...]) -> Step:
    """The step of `make_train_step`, not compiled: to be part of a larger program.

    Under `jax.vmap` over seeds leave `MergeState.step` without the axis, else transfers are computed at every step.

    Example:
        >>> step = mn.train_step(learners, ())
        >>> twice = jax.jit(lambda state: step(step(state, batches)[0], batches)[0])
        >>> int(twice(mn.init_state(learners, (), params, jax.random.key(0))).step)
        2
    """

    def step(state: MergeState, batches: Mapping[str, Any]) -> tuple[MergeState, dict[str, Any]]:
        return _step(learners, transfers, state, batches)

    return step


def make_train_step(
    learners: Mapping[str, Learner | None], transfers: tuple[Transfer, ...], *, shardings: MergeState | None = None
) -> Step:
    """The jitted step of joint training; the state is donated.

    In each step, in this order (MergeNet, algorithm 1):

    1. before every `cycle`-th step the adapters' outputs are written into the targets; they read all models as they
       were. An output with a NaN or infinity is not written;
    2. every learner takes a step of its own optimiser on its own loss and batch, all its parameters included;
    3. the adapters learn by their rule from what training made of their outputs.

    Args:
        learners: as given to `init_state`.
        transfers: as given to `init_state`.
        shardings: of the state (`state_shardings`), where it lies on a mesh; the new state keeps them, and the work of
            the adapters is divided over the mesh. Within the step all axes of the mesh are Auto.

    Returns:
        step(state, batches by name) -> (state, metrics): per model its loss and its own metrics, per transfer
        "transferred" (0 or 1) and, else 0: "norm" of what was written over that of what was there, "cosine" of both,
        "moved" (the way from there in the target's step, relative), "gradient" (norm), "finite".

    Example:
        >>> step = mn.make_train_step(learners, ())  # without transfers: each model learns alone
        >>> state, metrics = step(mn.init_state(learners, (), params, jax.random.key(0)), batches)
        >>> sorted(metrics), int(state.step)
        (['student', 'teacher'], 1)
    """
    step = train_step(learners, transfers)
    if shardings is None:
        return jax.jit(step, donate_argnums=0)
    mesh = jax.tree.leaves(shardings)[0].mesh
    everywhere = NamedSharding(mesh, PartitionSpec())

    def on_mesh(state: MergeState, batches: Mapping[str, Any]) -> tuple[MergeState, dict[str, Any]]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            within: Callable[..., Any] = jax.sharding.auto_axes(step, out_sharding=(shardings, everywhere))
            return within(state, batches)

    return jax.jit(on_mesh, donate_argnums=0, in_shardings=(shardings, None), out_shardings=(shardings, everywhere))


def check_finite(metrics: Mapping[str, Any]) -> None:
    """Checks that losses and adapters are finite; call it on the host, now and then.

    Raises:
        ValueError: naming the models and transfers that are not.

    Example:
        >>> mn.check_finite({"student": {"loss": np.nan}})
        Traceback (most recent call last):
        ValueError: student: values are not finite ...
    """
    bad = [name for name, own in metrics.items() if not all(np.isfinite(x).all() for x in own.values())]
    bad += [name for name, own in metrics.items() if name not in bad and "finite" in own and not own["finite"]]
    if bad:
        raise ValueError(
            f"{', '.join(bad)}: values are not finite (no transfer with such values is written); lower the learning "
            "rates, or look for NaN in the data."
        )


def _step(
    learners: Mapping[str, Learner | None],
    transfers: tuple[Transfer, ...],
    state: MergeState,
    batches: Mapping[str, Any],
) -> tuple[MergeState, dict[str, Any]]:
    if missing := [name for name, learner in learners.items() if learner is not None and name not in batches]:
        raise ValueError(f"there is no batch for {', '.join(missing)}; give one to every model that learns.")
    models, adapters, metrics = dict(state.models), list(state.adapters), {}
    before = {name: model.params for name, model in state.models.items()}
    for i, transfer in enumerate(transfers):
        there, sources = read(transfer, before, state.key)
        residual = adapters[i].residual
        targets = there if residual is None else jax.tree.map(jnp.subtract, there, residual)
        inputs = targets, sources, adapters[i].vectors
        due = state.step % transfer.config.cycle == 0
        key = _key(state, i, 0)
        new, vectors, diagnostics = jax.lax.cond(
            due,
            lambda *args, t=transfer, k=key: _transferred(t.config, k, *args),
            lambda there, params, targets, sources, vectors: (there, vectors, _nothing()),
            there,
            adapters[i].params,
            *inputs,
        )
        if residual is not None:
            made = diagnostics["transferred"] > 0
            residual = jax.tree.map(lambda a, b, old, made=made: jnp.where(made, a - b, old), new, targets, residual)
        target = models[transfer.target]
        params = write(transfer, {n: m.params for n, m in models.items()}, new)
        opt_state = target.opt_state
        if transfer.config.momentum == "reset":
            opt_state = _forgotten(learners[transfer.target], transfer, params, opt_state, due)
        models[transfer.target] = dataclasses.replace(target, params=params, opt_state=opt_state)
        pending = inputs
        if adapters[i].pending is not None:
            pending = jax.tree.map(lambda a, b, due=due: jnp.where(due, a, b), inputs, adapters[i].pending)
        adapters[i] = dataclasses.replace(adapters[i], vectors=vectors, pending=pending, residual=residual)
        metrics[transfer.name] = diagnostics

    gradients: dict[str, Any] = {}
    for i, (name, learner) in enumerate(learners.items()):
        if learner is not None:
            key = _key(state, LOSSES + i, 0)
            models[name], gradients[name], metrics[name] = _learned(learner, models[name], batches[name], key)

    after = {name: model.params for name, model in models.items()}
    for i, transfer in enumerate(transfers):
        source = gradients if transfer.config.rule == "exact" else after
        reached = written(
            transfer, {transfer.source: before[transfer.source], transfer.target: source[transfer.target]}
        )
        ago = transfer.config.inner_steps - 1
        due = (state.step % transfer.config.cycle == ago) & (state.step >= ago)
        kept, adapter = state.adapters[i].pending, adapters[i]
        params, opt_state, diagnostics = jax.lax.cond(
            due,
            lambda *args, t=transfer, k=_key(state, i, ago): _adapter_update(t, k, *args),
            lambda params, opt_state, *_: (params, opt_state, _no_update()),
            adapter.params,
            adapter.opt_state,
            adapter.pending,
            reached,
        )
        pending = None if kept is None else adapter.pending
        adapters[i] = dataclasses.replace(adapter, params=params, opt_state=opt_state, pending=pending)
        metrics[transfer.name] |= diagnostics
    return MergeState(models, tuple(adapters), state.step + 1, state.key), metrics


def _key(state: MergeState, number: int, ago: int) -> Array:
    """The key of a transfer or learner at a step."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step - ago), number)


def _outputs(
    config: MergeConfig, key: Array, params: Any, targets: Matrices, sources: Matrices, vectors: Any
) -> tuple[Matrices, Any]:
    """The adapters' outputs for the targets, in training."""
    outs, after = [], []
    for i, (group, target, source, states) in enumerate(zip(params, targets, sources, vectors, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key, i), len(target))
        out, states = _each(lambda p, v, t, s, k: apply_adapter(p, v, t, s, config, key=k), len(target))(
            group, states, target, source, keys
        )
        outs.append(out)
        after.append(states)
    return outs, after


def _each(adapter: Callable[..., Any], units: int) -> Callable[..., Any]:
    """The adapter of stacked units; one is not batched: XLA's CPU compiler makes slow products of a batch of one."""
    if units > 1:
        return jax.vmap(adapter)
    return lambda *stacked: jax.tree.map(lambda x: x[None], adapter(*jax.tree.map(lambda x: x[0], stacked)))


def _transferred(
    config: MergeConfig, key: Array, there: Matrices, params: Any, targets: Matrices, sources: Matrices, vectors: Any
) -> tuple[Matrices, Any, dict[str, Any]]:
    """The matrices that are written: the old ones if an output is not finite."""
    outs, after = _outputs(config, key, params, targets, sources, vectors)
    finite = _finite(outs)
    new, after = jax.tree.map(lambda a, b: jnp.where(finite, a, b), (outs, after), (there, vectors))
    old_norm, new_norm = _norm(targets), _norm(new)
    cosine = _dot(targets, new) / jnp.maximum(old_norm * new_norm, TINY)
    metrics = {"transferred": finite, "norm": new_norm / jnp.maximum(old_norm, TINY), "cosine": cosine}
    return new, after, {name: x.astype(jnp.float32) for name, x in metrics.items()}


def _nothing() -> dict[str, Any]:
    return {name: jnp.zeros(()) for name in ("transferred", "norm", "cosine")}


def _forgotten(learner: Any, transfer: Transfer, params: Any, opt_state: Any, due: Bool[Array, ""]) -> Any:
    """The optimiser's state with zeros for the tensors that were just written."""
    named = paths.mask(params, [pair.target for pair in transfer.pairs])
    return optax.tree.map_params(
        learner.optimizer, lambda x, reset: jnp.where(due & reset, jnp.zeros_like(x), x), opt_state, named
    )


def _learned(learner: Learner, model: ModelState, batch: Any, key: Array) -> tuple[ModelState, Any, dict[str, Any]]:
    """A model's own step, the gradients of its parameters, and its metrics."""

    def loss(params: Any) -> tuple[Float[Array, ""], Any]:
        return learner.loss(materialise(params), model.state, batch, key)

    (value, out), gradients = jax.value_and_grad(loss, has_aux=True)(model.params)
    params, opt_state = updated(learner.optimizer, gradients, model.opt_state, model.params)
    return ModelState(params, opt_state, out.state), gradients, {"loss": value, **out.metrics}


def _adapter_update(
    transfer: Transfer,
    key: Array,
    params: Any,
    opt_state: Any,
    inputs: tuple[Matrices, Matrices, Any],
    reached: Matrices,
) -> tuple[Any, Any, dict[str, Any]]:
    """The adapters after their update.

    The forward pass is made again, with the same dropout: that is cheaper than to keep what it left behind, and lets
    a transfer be of any step.
    """
    config = transfer.config
    outs, back = jax.vjp(lambda p: _outputs(config, key, p, *inputs)[0], params)
    way = jax.tree.map(jnp.subtract, outs, reached)
    # Else XLA's CPU compiler fuses what follows into the backward pass many times over.
    (gradient,) = jax.lax.optimization_barrier(back(reached if config.rule == "exact" else way))
    finite = _finite(gradient)
    new = updated(adapter_optimizer(transfer), gradient, opt_state, params)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (params, opt_state))
    size = jnp.maximum(_norm(outs), TINY)
    metrics = {
        "moved": 0.0 if config.rule == "exact" else _norm(way) / size,
        "gradient": _norm(gradient),
        "finite": finite,
    }
    return *new, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}


def _no_update() -> dict[str, Any]:
    return {"moved": jnp.zeros(()), "gradient": jnp.zeros(()), "finite": jnp.ones(())}


def _finite(tree: Any) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def _dot(a: Any, b: Any) -> Float[Array, ""]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jnp.stack([jnp.vdot(x.astype(jnp.float32), y.astype(jnp.float32)) for x, y in pairs]).sum()


def _norm(tree: Any) -> Float[Array, ""]:
    return jnp.sqrt(_dot(tree, tree))

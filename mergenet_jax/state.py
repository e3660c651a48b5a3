"""Everything that a step of joint training reads and writes, and how it begins."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mergenet_jax import paths
from mergenet_jax.adapter import Shape, init_adapter
from mergenet_jax.attention import Params
from mergenet_jax.checks import check_encodings, check_setup
from mergenet_jax.config import MergeConfig
from mergenet_jax.learner import Learner, ModelState
from mergenet_jax.low_rank import decompose, draw, is_factored, materialise
from mergenet_jax.spectral import Vectors
from mergenet_jax.transfer import Matrices, Transfer, init_from_source, read
from mergenet_jax.views import Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdapterState:
    """The adapters of one transfer between steps.

    Attributes:
        params: per group of equal shapes, stacked.
        opt_state: of their optimiser.
        vectors: singular vectors of the spectral norms, as `params`.
        pending: what the last transfer read, where the adapter learns from it at a later step; else None.
        residual: what the last transfer added, where it is taken off again before the next is added; else None.

    Example:
        >>> state.adapters[0].residual[0].shape
        (1, 3, 4)
    """

    params: Any
    opt_state: Any
    vectors: Any
    pending: tuple[Matrices, Matrices, Any] | None
    residual: Matrices | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MergeState:
    """The state of joint training.

    Attributes:
        models: by name.
        adapters: one per transfer.
        step: steps taken.
        key: from which all randomness is drawn, together with `step`; it stays as it is.

    Example:
        >>> sorted(state.models), len(state.adapters), int(state.step)
        (['student', 'teacher'], 1, 1)
    """

    models: dict[str, ModelState]
    adapters: tuple[AdapterState, ...]
    step: Int[Array, ""]
    key: Array


def init_state(
    learners: Mapping[str, Learner | None],
    transfers: tuple[Transfer, ...],
    params: Mapping[str, Any],
    key: Array,
    *,
    states: Mapping[str, Any] | None = None,
) -> MergeState:
    """The state before the first step. Runs under `jax.jit` and `jax.eval_shape` too.

    Args:
        learners: by name; None for a model that is only read.
        transfers: what goes where.
        params: by name; the arrays are used as they are, and the first step donates them.
        key: random key of adapters, factors, dropout and losses.
        states: by name, what a model carries on without training it, if anything.

    Raises:
        ValueError: if names, paths or shapes do not fit, or two models share buffers.

    Example:
        >>> jax.eval_shape(lambda key: mn.init_state(learners, transfers, params, key), jax.random.key(0)).step.shape
        ()
    """
    check_setup(learners, transfers, params, states or {})
    factors, adapters, rest = jax.random.split(key, 3)
    whole = {name: params[name] for name in learners}
    for transfer in transfers:
        whole[transfer.target] = init_from_source(transfer, params, whole[transfer.target], rest)
    for i, transfer in enumerate(transfers):
        whole = _encoded(transfer, whole, jax.random.fold_in(factors, i))
    check_encodings(transfers, whole)
    models = {
        name: ModelState(whole[name], learner and learner.optimizer.init(whole[name]), (states or {}).get(name))
        for name, learner in learners.items()
    }
    made = tuple(_adapter(t, whole, rest, jax.random.fold_in(adapters, i)) for i, t in enumerate(transfers))
    return MergeState(models, made, jnp.zeros((), jnp.int32), rest)


def export(state: MergeState, name: str) -> Any:
    """A model's parameters as the model knows them, without any trace of adapters or factors.

    Raises:
        ValueError: if there is no such model.

    Example:
        >>> mn.export(state, "student")["head"].shape
        (4, 3)
    """
    if name not in state.models:
        raise ValueError(f"there is no model {name!r}; models are {', '.join(sorted(state.models))}.")
    return materialise(state.models[name].params)


def _encoded(transfer: Transfer, params: dict[str, Any], key: Array) -> dict[str, Any]:
    """The parameters with factors for the kernels of a transfer, where it works on factors."""
    config = transfer.config
    if config.encoding == "dense":
        return params
    params = dict(params)
    for i, pair in enumerate(transfer.pairs):
        for side, path in enumerate((pair.source, pair.target)):
            name = transfer.target if side else transfer.source
            layout = pair.target_layout if side else pair.source_layout
            leaf = paths.get(params[name], path)
            if not is_factored(leaf):
                factored = _factored(jax.random.fold_in(key, 2 * i + side), leaf, config, layout)
                params[name] = paths.replace(params[name], {path: factored})
    return params


def _factored(key: Array, leaf: Array, config: MergeConfig, layout: Layout) -> Any:
    if config.encoding == "svd":
        return decompose(leaf, config.rank, layout)
    return draw(key, leaf, config.rank, layout)


def _drawing(config: MergeConfig) -> MergeConfig:
    """The options that `init_adapter` reads, so that transfers that differ in others share its program."""
    return MergeConfig(layers=config.layers, heads=config.heads, merge=config.merge)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))  # many small operations
def _drawn(keys: Array, target: Shape, source: Shape, config: MergeConfig) -> tuple[Params, Vectors]:
    return jax.vmap(lambda key: init_adapter(key, target, source, config))(keys)


def adapter_optimizer(transfer: Transfer) -> optax.GradientTransformation:
    """The optimiser of a transfer's adapters: AdamW on clipped gradients, without decay of biases, norms and gates."""
    if transfer.optimizer is not None:
        return transfer.optimizer
    config = transfer.config

    def decayed(params: Any) -> Any:
        names = jax.tree.unflatten(jax.tree.structure(params), paths.leaf_names(params))
        return jax.tree.map(lambda name: not any(word in name for word in ("bias", "norm", "alpha")), names)

    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(config.learning_rate, weight_decay=config.weight_decay, mask=decayed),
    )


def _adapter(transfer: Transfer, params: Mapping[str, Any], rest: Array, key: Array) -> AdapterState:
    targets, sources = read(transfer, params, rest)
    made = []
    for group, (target, source) in enumerate(zip(targets, sources, strict=True)):
        keys = jax.random.split(jax.random.fold_in(key, group), len(target))
        made.append(_drawn(keys, target.shape[1:], source.shape[1:], _drawing(transfer.config)))
    adapters, vectors = [params for params, _ in made], [vectors for _, vectors in made]
    pending = None
    if transfer.config.inner_steps > 1:  # copies: all of the state is donated, so that nothing may be in it twice
        pending = jax.tree.map(jnp.copy, (targets, sources, vectors))
    residual = jax.tree.map(jnp.zeros_like, targets) if transfer.config.merge == "gated" else None
    return AdapterState(adapters, adapter_optimizer(transfer).init(adapters), vectors, pending, residual)

"""A model as MergeNet sees it: parameters, a loss and an optimiser."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float


class LossOutput(NamedTuple):
    """The second value of a loss function, beside the loss.

    Attributes:
        state: what the model carries on without training it, such as running statistics; the same tree as it was given.
        metrics: dict of scalars to report.

    Example:
        >>> mn.LossOutput(metrics={"accuracy": 0.5}).state is None
        True
    """

    state: Any = None
    metrics: dict[str, Any] = {}


LossFn = Callable[[Any, Any, Any, Array], tuple[Float[Array, ""], LossOutput]]
"""loss(params, state, batch, key) -> (loss, LossOutput)."""


@dataclasses.dataclass(frozen=True)
class Learner:
    """A model that learns.

    Attributes:
        loss: see `LossFn`.
        optimizer: of its parameters.

    Example:
        >>> def squares(params, state, batch, key):
        ...     return jnp.sum(params["w"] ** 2), mn.LossOutput(state)
        >>> one = mn.Learner(squares, optax.adam(1e-3))
    """

    loss: LossFn
    optimizer: optax.GradientTransformation


def updated(optimizer: optax.GradientTransformation, gradients: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    """Parameters and optimiser state after a step."""
    with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to integer step counts
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelState:
    """A model between steps.

    Attributes:
        params: any pytree; kernels may be `Factored`.
        opt_state: of its learner's optimiser; None of a frozen model.
        state: see `LossOutput`.

    Example:
        >>> sorted(state.models["student"].params)
        ['head']
    """

    params: Any
    opt_state: Any
    state: Any

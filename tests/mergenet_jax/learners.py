"""Small models for tests: two-layer perceptrons on a task that can be learned."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mergenet_jax import Learner, LossOutput

FEATURES, CLASSES = 8, 4


def perceptron(seed: int, width: int) -> dict[str, Any]:
    """Parameters as plain nested dicts, kernels [in, out]."""
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "hidden": {"kernel": jax.random.normal(first, (FEATURES, width)) * FEATURES**-0.5, "bias": jnp.zeros(width)},
        "head": {"kernel": jax.random.normal(second, (width, CLASSES)) * width**-0.5, "bias": jnp.zeros(CLASSES)},
    }


def logits(params: Any, x: jax.Array) -> jax.Array:
    """[B, C] of inputs [B, 8]."""
    h = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return h @ params["head"]["kernel"] + params["head"]["bias"][None]


def loss(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, LossOutput]:
    """Cross-entropy; counts its calls in the state, where there is one."""
    found = logits(params, batch["x"])
    value = optax.softmax_cross_entropy_with_integer_labels(found, batch["y"]).mean()
    return value, LossOutput(
        state and {"calls": state["calls"] + 1}, {"accuracy": (found.argmax(1) == batch["y"]).mean()}
    )


@functools.cache
def learner(rate: float = 0.1) -> Learner:
    """SGD with momentum and weight decay, as the authors use it."""
    return Learner(loss, optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9)))


def batch(seed: int, size: int = 16) -> dict[str, jax.Array]:
    """Random inputs and their classes."""
    x = jax.random.normal(jax.random.key(seed), (size, FEATURES))
    rule = jax.random.normal(jax.random.key(99), (FEATURES, CLASSES))
    return {"x": x, "y": (x @ rule).argmax(-1)}

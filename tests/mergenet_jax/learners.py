"""Small models for tests: two-layer perceptrons on a task that can be learned."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mergenet_jax import Learner, LossOutput

FEATURES, CLASSES = 8, 4


def perceptron(seed: int, width: int) -> dict[str, Any]:
    """Parameters as plain nested dicts, kernels [in, out]; drawn by NumPy, which compiles nothing."""
    random = np.random.default_rng(seed)
    sizes = {"hidden": (FEATURES, width), "head": (width, CLASSES)}
    return {
        name: {"kernel": _normal(random, size), "bias": jnp.asarray(np.zeros(size[1], np.float32))}
        for name, size in sizes.items()
    }


def _normal(random: np.random.Generator, size: tuple[int, int]) -> jax.Array:
    return jnp.asarray((random.standard_normal(size) * size[0] ** -0.5).astype(np.float32))


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


RULE = np.random.default_rng(99).standard_normal((FEATURES, CLASSES)).astype(np.float32)


def batch(seed: int, size: int = 16) -> dict[str, jax.Array]:
    """Random inputs and their classes."""
    x = np.random.default_rng(seed).standard_normal((size, FEATURES)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray((x @ RULE).argmax(-1).astype(np.int32))}


@jax.jit
def step_alone(params: Any, opt_state: Any, data: Any) -> tuple[Any, Any, Any]:
    """Parameters, optimiser's state and gradients after a step without MergeNet."""
    gradients = jax.grad(lambda p: loss(p, None, data, jax.random.key(0))[0])(params)
    updates, opt_state = learner().optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, gradients

"""Dense layers under spectral norm (Miyato et al. 2018), with the singular vectors as explicit state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mergenet_jax.attention import Params, init_dense

EPSILON = 1e-12
WARM_UP = 16
"""Power iterations at the beginning: torch makes 15, and one more when it tries the parametrisation."""
Vectors = dict


def _unit(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return x / jnp.maximum(jnp.linalg.norm(x), EPSILON)


def power_iteration(kernel: Float[Array, "n f"], vectors: Vectors) -> Vectors:
    """One step towards the first singular vectors: u [f] of the outputs, v [n] of the inputs."""
    kernel = jax.lax.stop_gradient(kernel)
    u = _unit(vectors["v"] @ kernel)
    return {"u": u, "v": _unit(kernel @ u)}


def init_spectral(key: Array, features_in: int, features_out: int) -> tuple[Params, Vectors]:
    """A dense layer and its vectors after the first power iterations."""
    weights, left, right = jax.random.split(key, 3)
    params = init_dense(weights, features_in, features_out)
    vectors = {
        "u": _unit(jax.random.normal(left, (features_out,))),
        "v": _unit(jax.random.normal(right, (features_in,))),
    }
    return params, jax.lax.fori_loop(0, WARM_UP, lambda _, states: power_iteration(params["kernel"], states), vectors)


def normalised(params: Params, vectors: Vectors) -> Params:
    """The dense layer with kernel / sigma, where sigma = v kernel u."""
    sigma = vectors["v"] @ params["kernel"] @ vectors["u"]
    return params | {"kernel": params["kernel"] / sigma}

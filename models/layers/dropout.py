"""Dropout with explicit keys (Srivastava et al. 2014): without a key nothing is dropped."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.sharding import MeshAxis, dividing, out_spec


def dropout(
    x: Float[Array, "B *T"], rate: float, key: Array | None, axes: tuple[MeshAxis, ...] = ()
) -> Float[Array, "B *T"]:
    """Sets each value to zero with probability `rate`, and divides the others by 1 - rate.

    Args:
        x: any array.
        rate: from 0 to 1.
        key: a PRNG key; None, outside of training, returns `x`.
        axes: mesh axes of the first axes of `x`.
    """
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    spec = [dividing(axis, size) for axis, size in zip(axes, x.shape, strict=False)]
    kept = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=out_spec(*spec, *(None,) * (x.ndim - len(spec))))
    return jnp.where(kept, x / (1 - rate), 0)


def split(key: Array | None, count: int) -> tuple[Array | None, ...]:
    """`count` keys from one, and without one as many times None."""
    return (None,) * count if key is None else tuple(jax.random.split(key, count))

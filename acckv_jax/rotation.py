"""Undoing 1-D RoPE on cached keys."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def unrotated(k: Float[Array, "B K S H"], index: Int[Array, "B K S"], theta: float) -> Float[Array, "B K S H"]:
    """Keys as they were before a rotation by their index (pairs (i, i + H/2), base `theta`), in float32."""
    size = k.shape[-1]
    frequencies = 1.0 / theta ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = index[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    first, second = jnp.split(k.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos + second * sin, second * cos - first * sin], axis=-1)

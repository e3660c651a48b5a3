"""Normalisation layers; statistics are taken in float32."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, features: int, *, epsilon: float, dtype: jnp.dtype = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis of `x`."""
        h = x.astype(jnp.float32)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + self.epsilon)
        scale = self.scale[...]
        return h.astype(x.dtype) * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis."""

    def __init__(self, features: int, *, epsilon: float, dtype: jnp.dtype = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis of `x`."""
        h = x.astype(jnp.float32)
        mean = jnp.mean(h, -1, keepdims=True)
        h = (h - mean) * jax.lax.rsqrt(jnp.mean(jnp.square(h - mean), -1, keepdims=True) + self.epsilon)
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        return h.astype(x.dtype) * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)

"""Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167), as PyTorch computes it."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

MOMENTUM = 0.9
"""What the running statistics keep at a step; PyTorch writes it as momentum = 0.1."""


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis, in float32 for inputs of any type.

    In training the statistics are the batch's: over all of it where its rows are divided over a mesh, because the means
    below are of global arrays. The running ones take up 1 - `MOMENTUM` of them. The running variance is the unbiased
    one, n / (n - 1) times that of the batch, as in PyTorch; `nnx.BatchNorm` keeps the biased one, and its sums follow
    the type of its input.

    Args:
        features: size of the last axis.
        epsilon: added to the variance.
        dtype: type of scale and bias; the statistics are float32.
    """

    def __init__(self, features: int, *, epsilon: float, dtype: jnp.dtype = jnp.float32) -> None:
        self.scale = nnx.Param(jnp.ones((features,), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*B D"], train: bool) -> Float[Array, "*B D"]:
        """Normalises `x`; in training also moves the running statistics.

        Raises:
            ValueError: if in training there is but one value of each feature, which has no variance.
        """
        shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
        scale, bias = (p[...].astype(jnp.float32).reshape(shape) for p in (self.scale, self.bias))
        # The running mean is taken off first: the variance can then be had in one pass over x, without cancellation.
        h = x.astype(jnp.float32) - self.mean[...].reshape(shape)
        if not train:
            return (h * (scale * jax.lax.rsqrt(self.var[...].reshape(shape) + self.epsilon)) + bias).astype(x.dtype)
        mean, var = self._update(h)
        factor = scale * jax.lax.rsqrt(var.reshape(shape) + self.epsilon)
        return ((h - mean.reshape(shape)) * factor + bias).astype(x.dtype)

    def _update(self, h: Float[Array, "*B D"]) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """Mean and variance of the batch, less the running mean; moves the running statistics."""
        axes, count = tuple(range(h.ndim - 1)), math.prod(h.shape[:-1])
        if count < 2:
            raise ValueError(
                "Batch normalisation needs more than one value of each feature in training, but this batch has one; "
                "use more or larger images."
            )
        mean = jnp.mean(h, axes)
        var = jnp.maximum(jnp.mean(jnp.square(h), axes) - jnp.square(mean), 0)
        self.mean[...] += (1 - MOMENTUM) * mean
        self.var[...] = MOMENTUM * self.var[...] + (1 - MOMENTUM) * count / (count - 1) * var
        return mean, var

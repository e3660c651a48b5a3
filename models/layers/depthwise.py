"""Depthwise convolution."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class DepthwiseConv(nnx.Module):
    """One k x k filter per channel, channels last, padded as TensorFlow's SAME.

    Args:
        features: channels.
        size: k.
        stride: step in both directions.
        use_bias: whether a bias per channel is added.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(
        self, features: int, size: int, stride: int, *, use_bias: bool = True, rngs: nnx.Rngs, dtype: jnp.dtype
    ) -> None:
        init = jax.nn.initializers.normal(1 / size)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, features), dtype))
        self.bias = nnx.Param(jnp.zeros((features,), dtype)) if use_bias else None
        self.stride = stride

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y/s X/s C"]:
        """Applies the convolution.

        XLA's grouped convolution is some ten times slower on CPU than k*k shifted products, so CPUs get the latter.
        """
        y = jax.lax.platform_dependent(
            x,
            self.kernel[...],
            cpu=functools.partial(shifted, stride=self.stride),
            default=functools.partial(grouped, stride=self.stride),
        )
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


def shifted(x: Float[Array, "B Y X C"], kernel: Float[Array, "k k C"], stride: int) -> Float[Array, "B Y/s X/s C"]:
    """Depthwise convolution as a sum over the kernel's taps of strided views times one weight per channel."""
    size = kernel.shape[0]
    out = [-(-n // stride) for n in x.shape[1:3]]
    pads = [max((o - 1) * stride + size - n, 0) for o, n in zip(out, x.shape[1:3], strict=True)]
    padded = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
    spans = [(o - 1) * stride + 1 for o in out]
    total = jnp.zeros((x.shape[0], *out, x.shape[3]), x.dtype)
    for i in range(size):
        for j in range(size):
            view = padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride]
            total = total + view * kernel[i, j].reshape(1, 1, 1, -1)
    return total


def grouped(x: Float[Array, "B Y X C"], kernel: Float[Array, "k k C"], stride: int) -> Float[Array, "B Y/s X/s C"]:
    """Depthwise convolution as XLA's convolution with one group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )

"""Depthwise convolution."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float


class DepthwiseConv(nnx.Module):
    """One k x k filter per channel, channels last.

    Args:
        features: channels.
        size: k, odd.
        stride: step in both directions.
        use_bias: whether a bias per channel is added.
        same: padded as TensorFlow's SAME; else by k // 2 on all sides.
        init: how a kernel [k, k, 1, features] starts; normal, with deviation 1 / k, if it is None.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features: int,
        size: int,
        stride: int,
        *,
        use_bias: bool = True,
        same: bool = True,
        init: Initializer | None = None,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ) -> None:
        init = init or jax.nn.initializers.normal(1 / size)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, 1, features), dtype)[:, :, 0])
        self.bias = nnx.Param(jnp.zeros((features,), dtype)) if use_bias else None
        self.stride = stride
        self.same = same

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y/s X/s C"]:
        """Applies the convolution.

        XLA's grouped convolution is some ten times slower on CPU than k*k shifted products, so CPUs get the latter.
        """
        y = jax.lax.platform_dependent(
            x,
            self.kernel[...],
            cpu=functools.partial(shifted, stride=self.stride, same=self.same),
            default=functools.partial(grouped, stride=self.stride, same=self.same),
        )
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, 1, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted(
    x: Float[Array, "B Y X C"], kernel: Float[Array, "k k C"], stride: int, same: bool = True
) -> Float[Array, "B Y/s X/s C"]:
    """Depthwise convolution as a sum over the kernel's taps of strided views times one weight per channel."""
    return _sum_of_views(x, kernel, stride, same)


def _sum_of_views(x: Array, kernel: Array, stride: int, same: bool) -> Array:
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
    views = _views(x, kernel.shape[0], stride, same)
    return functools.reduce(jnp.add, (view * weight for view, weight in zip(views, weights, strict=True)))


def _forward(x: Array, kernel: Array, stride: int, same: bool) -> tuple[Array, tuple[Array, Array]]:
    return _sum_of_views(x, kernel, stride, same), (x, kernel)


def _backward(stride: int, same: bool, inputs: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """The gradients; the kernel's in one pass over the picture, where XLA on CPU would take a slow one for each tap."""
    x, kernel = inputs
    (by_view,) = jax.linear_transpose(lambda x: _sum_of_views(x, kernel, stride, same), x)(gradient)
    products = [view * gradient for view in _views(x, kernel.shape[0], stride, same)]
    zeros = [jnp.zeros((), x.dtype)] * len(products)
    sums = jax.lax.reduce(products, zeros, lambda a, b: list(map(jnp.add, a, b)), (0, 1, 2))
    return by_view, jnp.stack(sums).reshape(kernel.shape)


shifted.defvjp(_forward, _backward)


def _views(x: Float[Array, "B Y X C"], size: int, stride: int, same: bool) -> list[Float[Array, "B Y/s X/s C"]]:
    """What each tap of a k x k kernel sees, row by row."""
    padded = jnp.pad(x, ((0, 0), *_pads(x.shape[1:3], size, stride, same), (0, 0)))
    height, width = ((-(-n // stride) - 1) * stride + 1 for n in x.shape[1:3])
    return [padded[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


def grouped(
    x: Float[Array, "B Y X C"], kernel: Float[Array, "k k C"], stride: int, same: bool = True
) -> Float[Array, "B Y/s X/s C"]:
    """Depthwise convolution as XLA's convolution with one group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        _pads(x.shape[1:3], kernel.shape[0], stride, same),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pads(shape: Sequence[int], size: int, stride: int, same: bool) -> list[tuple[int, int]]:
    """Before and after, for an output of n / stride, rounded up; what no filter would reach is not padded."""
    totals = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in shape]
    before = [total // 2 if same else size // 2 for total in totals]
    return [(b, max(total - b, 0)) for b, total in zip(before, totals, strict=True)]

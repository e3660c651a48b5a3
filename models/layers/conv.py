"""Convolutions of picture classifiers, with the batch normalisation that follows them, or with it folded in."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import Initializer, variance_scaling
from jaxtyping import Array, Float

from models.layers.batch_norm import BatchNorm
from models.layers.depthwise import DepthwiseConv
from models.layers.init import Params

HE = variance_scaling(2.0, "fan_out", "normal")
"""He et al. 2015 (arXiv 1502.01852), over the outputs: the ImageNet references."""
UNIFORM = variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for convolutions and dense layers, uniform within 1 / sqrt(inputs): the CIFAR references."""


@dataclasses.dataclass(frozen=True)
class ConvStyle:
    """What the convolutions of a network have in common.

    Attributes:
        epsilon: of the batch normalisation after each of them; None where there is none.
        use_bias: whether they have biases; those start at zero.
        same: padded as TensorFlow's SAME; else by k // 2 on all sides, as is common in PyTorch. The two differ only
            where the stride is more than 1.
        init: how kernels start.
    """

    epsilon: float | None
    use_bias: bool = False
    same: bool = False
    init: Initializer = HE


class NormedConv(nnx.Module):
    """A convolution of channels last and, where its style says so, batch normalisation.

    Args:
        features_in: channels in.
        features_out: channels out.
        size: k, of a k x k kernel [k, k, in, out].
        stride: step in both directions.
        style: what the network's convolutions have in common.
        depthwise: one filter per channel, a kernel [k, k, channels]; in and out must be equal.
        padding: on all sides, in place of what the style says; for full kernels only.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int = 1,
        stride: int = 1,
        *,
        style: ConvStyle,
        depthwise: bool = False,
        padding: int | None = None,
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        if depthwise:
            self.conv: nnx.Module = DepthwiseConv(
                features_out,
                size,
                stride,
                use_bias=style.use_bias,
                same=style.same,
                init=style.init,
                rngs=rngs,
                dtype=dtype,
            )
        else:
            self.conv = nnx.Conv(
                features_in,
                features_out,
                (size, size),
                strides=stride,
                padding=padding if padding is not None else "SAME" if style.same else size // 2,
                use_bias=style.use_bias,
                kernel_init=style.init,
                param_dtype=dtype,
                rngs=rngs,
            )
        self.norm = None if style.epsilon is None else BatchNorm(features_out, epsilon=style.epsilon, dtype=dtype)

    def __call__(self, x: Float[Array, "B Y X C"], train: bool) -> Float[Array, "B y x D"]:
        """Applies both."""
        y = self.conv(x)
        return y if self.norm is None else self.norm(y, train)


def classifier_head(features: int, classes: int, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> nnx.Linear:
    """The last dense layer, initialised as PyTorch's but for the bias, which starts at zero."""
    return nnx.Linear(features, classes, kernel_init=UNIFORM, param_dtype=dtype, rngs=rngs)


def folded(tree: Params, epsilon: float) -> Params:
    """Parameters of the same network without batch normalisation, which computes what this one does in evaluation.

    Args:
        tree: parameters and running statistics in one nested dict (NumPy).
        epsilon: of the batch normalisation.
    """
    if "norm" not in tree:
        return {key: folded(part, epsilon) if isinstance(part, dict) else part for key, part in tree.items()}
    conv: dict[str, Any] = tree["conv"]
    norm: dict[str, Any] = tree["norm"]
    scale = norm["scale"] / np.sqrt(norm["var"] + np.float32(epsilon))
    bias = norm["bias"] + (conv.get("bias", np.float32(0)) - norm["mean"]) * scale
    return {"conv": {"kernel": conv["kernel"] * scale, "bias": bias}}

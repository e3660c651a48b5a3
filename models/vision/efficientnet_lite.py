"""EfficientNet-Lite: EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6.

As in TensorFlow's reference, the stem, the head and the number of blocks in the first and last stage are not scaled.
Batch normalisation is folded into the convolutions when the weights are loaded: this is for inference.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.interface import Params, define
from models.layers.depthwise import DepthwiseConv
from models.readers.legacy_pickle import read_legacy_state_dict
from models.weights import fetch

BATCH_NORM_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block: channels in and out, width factor inside, kernel size, stride."""

    features_in: int
    features_out: int
    expansion: int
    kernel: int
    stride: int


STAGES = (  # blocks and the first of them, before scaling (EfficientNet-B0, table 1)
    (1, Block(32, 16, 1, 3, 1)),
    (2, Block(16, 24, 6, 3, 2)),
    (2, Block(24, 40, 6, 5, 2)),
    (3, Block(40, 80, 6, 3, 2)),
    (3, Block(80, 112, 6, 5, 1)),
    (4, Block(112, 192, 6, 5, 2)),
    (1, Block(192, 320, 6, 3, 1)),
)


@dataclasses.dataclass(frozen=True)
class EfficientNetLiteConfig:
    """Scaling factors and sizes.

    Attributes:
        width: factor on the channels.
        depth: factor on the number of blocks of a stage.
        classes: outputs of the classifier.
        stem: channels of the first convolution.
        head: channels of the last one.
    """

    width: float
    depth: float
    classes: int = 1000
    stem: int = 32
    head: int = 1280

    @classmethod
    def lite0(cls) -> Self:
        """EfficientNet-Lite0: 4.65 M parameters, 224 pixels, ImageNet-1k."""
        return cls(1.0, 1.0)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order, after scaling."""
        blocks: list[Block] = []
        for index, (count, first) in enumerate(STAGES):
            before = blocks[-1].features_out if blocks else self.stem
            after = _round_to_8(first.features_out * self.width)
            repeats = count if index in (0, len(STAGES) - 1) else math.ceil(count * self.depth)
            blocks.append(dataclasses.replace(first, features_in=before, features_out=after))
            again = dataclasses.replace(first, features_in=after, features_out=after, stride=1)
            blocks.extend([again] * (repeats - 1))
        return tuple(blocks)


def _round_to_8(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def _pointwise(features_in: int, features_out: int, rngs: nnx.Rngs, dtype: jnp.dtype) -> nnx.Conv:
    return nnx.Conv(features_in, features_out, (1, 1), param_dtype=dtype, rngs=rngs)


class InvertedResidual(nnx.Module):
    """Expand, filter each channel, project; the input is added where the shape allows (MobileNetV2)."""

    def __init__(self, block: Block, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        inside = block.features_in * block.expansion
        self.block = block
        self.expand = None if block.expansion == 1 else _pointwise(block.features_in, inside, rngs, dtype)
        self.depthwise = DepthwiseConv(inside, block.kernel, block.stride, rngs=rngs, dtype=dtype)
        self.project = _pointwise(inside, block.features_out, rngs, dtype)

    def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y/s X/s c"]:
        """Applies the block."""
        h = x if self.expand is None else jax.nn.relu6(self.expand(x))
        h = self.project(jax.nn.relu6(self.depthwise(h)))
        return x + h if self.block.stride == 1 and self.block.features_in == self.block.features_out else h


class EfficientNetLite(nnx.Module):
    """Stem, blocks, head convolution, mean over the picture, classifier."""

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        blocks = config.blocks
        self.config = config
        self.stem = nnx.Conv(3, config.stem, (3, 3), strides=2, padding="SAME", param_dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(InvertedResidual(block, rngs=rngs, dtype=dtype) for block in blocks)
        self.head = _pointwise(blocks[-1].features_out, config.head, rngs, dtype)
        self.classifier = nnx.Linear(config.head, config.classes, param_dtype=dtype, rngs=rngs)

    def features(self, images: Float[Array, "B Y X 3"] | Int[Array, "B Y X 3"]) -> Float[Array, "B Y/32 X/32 C"]:
        """The map before the head convolution ([B, 7, 7, 320] for Lite0 at 224 pixels).

        Args:
            images: RGB, values 0 to 255 (any number type), channels last.
        """
        x = (images.astype(self.stem.kernel[...].dtype) - 127) / 128
        x = jax.nn.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x

    def logits(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B classes"]:
        """ImageNet logits from the map that `features` gives."""
        return self.classifier(jnp.mean(jax.nn.relu6(self.head(features)), axis=(1, 2)))


def load_efficientnet_lite0() -> tuple[nnx.GraphDef, Params]:
    """Graph definition and float32 parameters (NumPy) of Lite0.

    ``nnx.merge(graph, params).features(images)`` runs it.

    Raises:
        UserError: if the weights cannot be fetched or read.
    """
    config = EfficientNetLiteConfig.lite0()
    graph, _ = define(lambda: EfficientNetLite(config, rngs=nnx.Rngs(0)))
    return graph, efficientnet_lite_params(read_legacy_state_dict(fetch("efficientnet-lite0")), config)


def efficientnet_lite_params(state: dict[str, np.ndarray], config: EfficientNetLiteConfig) -> Params:
    """A PyTorch state dict (names of lukemelas/EfficientNet-PyTorch) as parameters, batch normalisation folded in."""

    def fold(conv: str, norm: str, arrange: Callable[[np.ndarray], np.ndarray]) -> Params:
        scale = state[norm + ".weight"] / np.sqrt(state[norm + ".running_var"] + np.float32(BATCH_NORM_EPSILON))
        bias = state[norm + ".bias"] - state[norm + ".running_mean"] * scale
        return {"kernel": arrange(state[conv + ".weight"] * scale[:, None, None, None]), "bias": bias}

    def full(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 3, 1, 0)

    def depthwise(kernel: np.ndarray) -> np.ndarray:
        return kernel[:, 0].transpose(1, 2, 0)

    def block(index: int, expansion: int) -> Params:
        name = f"_blocks.{index}."
        parts = {
            "depthwise": fold(name + "_depthwise_conv", name + "_bn1", depthwise),
            "project": fold(name + "_project_conv", name + "_bn2", full),
        }
        return parts if expansion == 1 else parts | {"expand": fold(name + "_expand_conv", name + "_bn0", full)}

    return {
        "stem": fold("_conv_stem", "_bn0", full),
        "blocks": {i: block(i, b.expansion) for i, b in enumerate(config.blocks)},
        "head": fold("_conv_head", "_bn1", full),
        "classifier": {"kernel": state["_fc.weight"].T, "bias": state["_fc.bias"]},
    }

"""Networks of inverted residual blocks: MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) and EfficientNet-Lite."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.layers.conv import ConvStyle, NormedConv, classifier_head
from models.vision.classification import Outputs


@dataclasses.dataclass(frozen=True)
class Block:
    """One inverted residual block: channels in and out, width factor inside, kernel size, stride."""

    features_in: int
    features_out: int
    expansion: int
    kernel: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution: channels out, kernel size, stride; padding on all sides, None for what the style says."""

    features: int
    kernel: int = 3
    stride: int = 2
    padding: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A network, layer by layer.

    Attributes:
        stem: the first convolution.
        blocks: in order.
        head: channels of the last convolution.
        classes: outputs of the classifier.
        style: what the convolutions have in common.
        always_expand: whether blocks of expansion 1 have an expanding convolution too.
    """

    stem: Stem
    blocks: tuple[Block, ...]
    head: int
    classes: int
    style: ConvStyle
    always_expand: bool = False


def chained(first: int, stages: tuple[tuple[int, Block], ...]) -> tuple[Block, ...]:
    """All blocks of a network, each taking the channels that the one before gives.

    Args:
        first: channels that the first block takes.
        stages: how many blocks, and what they are like; only the first of a stage has its stride.
    """
    blocks: list[Block] = []
    for count, block in stages:
        for number in range(count):
            before = blocks[-1].features_out if blocks else first
            stride = block.stride if number == 0 else 1
            blocks.append(dataclasses.replace(block, features_in=before, stride=stride))
    return tuple(blocks)


def round_to_8(channels: float) -> int:
    """The nearest multiple of 8 that is at least 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nnx.Module):
    """Expand, filter each channel, project; the input is added where the shape allows."""

    def __init__(self, block: Block, plan: Plan, *, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        inside = block.features_in * block.expansion
        shared = {"style": plan.style, "rngs": rngs, "dtype": dtype}
        expands = block.expansion > 1 or plan.always_expand
        self.expand = NormedConv(block.features_in, inside, **shared) if expands else None
        self.depthwise = NormedConv(inside, inside, block.kernel, block.stride, depthwise=True, **shared)
        self.project = NormedConv(inside, block.features_out, **shared)
        self.residual = block.stride == 1 and block.features_in == block.features_out

    def __call__(self, x: Float[Array, "B Y X C"], train: bool) -> Float[Array, "B Y/s X/s c"]:
        """Applies the block."""
        h = x if self.expand is None else jax.nn.relu6(self.expand(x, train))
        h = self.project(jax.nn.relu6(self.depthwise(h, train)), train)
        return x + h if self.residual else h


class InvertedResidualNet(nnx.Module):
    """Stem, blocks, head convolution, mean over the picture, classifier."""

    def __init__(self, plan: Plan, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        stem, shared = plan.stem, {"style": plan.style, "rngs": rngs, "dtype": dtype}
        self.stem = NormedConv(3, stem.features, stem.kernel, stem.stride, padding=stem.padding, **shared)
        self.blocks = nnx.List(InvertedResidual(block, plan, rngs=rngs, dtype=dtype) for block in plan.blocks)
        self.head = NormedConv(plan.blocks[-1].features_out, plan.head, **shared)
        self.classifier = classifier_head(plan.head, plan.classes, rngs=rngs, dtype=dtype)

    def map(self, images: Float[Array, "B Y X 3"], train: bool) -> Float[Array, "B y x C"]:
        """The map before the head convolution."""
        x = jax.nn.relu6(self.stem(images.astype(self.classifier.kernel[...].dtype), train))
        for block in self.blocks:
            x = block(x, train)
        return x

    def outputs(self, x: Float[Array, "B y x C"], train: bool) -> Outputs:
        """Head convolution, mean over the picture, classifier."""
        features = jnp.mean(jax.nn.relu6(self.head(x, train)), axis=(1, 2))
        return Outputs(self.classifier(features), features)

    def __call__(self, images: Float[Array, "B Y X 3"], train: bool) -> Outputs:
        """Classifies pictures (normalised colours, channels last)."""
        return self.outputs(self.map(images, train), train)

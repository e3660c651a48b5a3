"""ResNet (He et al. 2016, arXiv 1512.03385), with stems for ImageNet and for CIFAR."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.errors import UserError
from models.hf.config import Section
from models.hf.tensors import Tensors, linear
from models.layers.conv import HE, UNIFORM, ConvStyle, NormedConv, classifier_head
from models.vision.classification import Outputs, check_stem, hf_classes, hf_normed_conv

EPSILON = 1e-5
EXPANSION = 4  # of a bottleneck
CHANNELS = (64, 128, 256, 512)
STYLES = {"imagenet": ConvStyle(EPSILON, init=HE), "cifar": ConvStyle(EPSILON, init=UNIFORM)}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet.

    Attributes:
        depths: blocks of each stage.
        bottleneck: whether blocks are 1x1, 3x3, 1x1 with four times the channels at the end; else 3x3, 3x3.
        classes: outputs of the classifier.
        stem: "imagenet": 7x7 of stride 2 and a max pool, as in the paper; "cifar": 3x3 of stride 1, and kernels that
            start as PyTorch's, as in weiaicunzai/pytorch-cifar100.
        channels: inside the blocks of each stage; the stem has those of the first.
    """

    depths: tuple[int, ...]
    bottleneck: bool
    classes: int = 1000
    stem: str = "imagenet"
    channels: tuple[int, ...] = CHANNELS

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            UserError: if the stem is unknown, or stages and channels do not fit.
        """
        check_stem(self.stem)
        if len(self.depths) != len(self.channels) or min(self.depths + self.channels, default=0) < 1:
            raise UserError(
                f"A ResNet needs a positive number of blocks and channels for each stage, not depths {self.depths} "
                f"and channels {self.channels}."
            )

    @classmethod
    def resnet18(cls, width: float = 1, **changes: Any) -> Self:
        """ResNet-18, with `width` times the channels."""
        return cls((2, 2, 2, 2), False, channels=_scaled(width), **changes)

    @classmethod
    def resnet50(cls, width: float = 1, **changes: Any) -> Self:
        """ResNet-50 (strides in the 3x3, "v1.5"), with `width` times the channels."""
        return cls((3, 4, 6, 3), True, channels=_scaled(width), **changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Two small stages with the CIFAR stem, for tests."""
        return dataclasses.replace(cls((2, 1), True, 10, "cifar", (4, 6)), **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """Reads a config.json; what Hugging Face's format leaves out there has the published default.

        `check` the section afterwards (`reading` does).
        """
        for name, value in (
            ("num_channels", 3),
            ("hidden_act", "relu"),
            ("downsample_in_first_stage", False),
            ("downsample_in_bottleneck", False),
        ):
            section.only(name, value)
        kind = section.get("layer_type", str, "bottleneck")
        if kind not in ("basic", "bottleneck"):
            section.problem(f"{section.path('layer_type')} is {kind!r}, but must be 'basic' or 'bottleneck'", None)
        expansion = EXPANSION if kind == "bottleneck" else 1
        sizes = section.integers("hidden_sizes")
        channels = tuple(size // expansion for size in sizes)
        if any(size % expansion for size in sizes):
            section.problem(f"{section.path('hidden_sizes')} must be multiples of {expansion}, not {sizes}", None)
        if channels:
            section.only("embedding_size", channels[0])
        return cls(section.integers("depths"), kind == "bottleneck", hf_classes(section), "imagenet", channels)

    @property
    def features(self) -> int:
        """Channels of the last stage, which the classifier reads."""
        return self.channels[-1] * (EXPANSION if self.bottleneck else 1)


def _scaled(width: float) -> tuple[int, ...]:
    return tuple(max(1, round(channels * width)) for channels in CHANNELS)


class Residual(nnx.Module):
    """Two or three convolutions, and a shortcut that is projected where the shape changes."""

    def __init__(
        self,
        features_in: int,
        inside: int,
        stride: int,
        *,
        bottleneck: bool,
        style: ConvStyle,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ) -> None:
        out = inside * EXPANSION if bottleneck else inside
        shared = {"style": style, "rngs": rngs, "dtype": dtype}
        shapes = (  # in, out, kernel, stride
            [(features_in, inside, 1, 1), (inside, inside, 3, stride), (inside, out, 1, 1)]
            if bottleneck
            else [(features_in, inside, 3, stride), (inside, out, 3, 1)]
        )
        projected = stride != 1 or features_in != out
        self.convs = nnx.List(NormedConv(*shape, **shared) for shape in shapes)
        self.shortcut = NormedConv(features_in, out, 1, stride, **shared) if projected else None

    def __call__(self, x: Float[Array, "B Y X C"], train: bool) -> Float[Array, "B Y/s X/s c"]:
        """Applies the block."""
        *first, last = self.convs
        h = x
        for layer in first:
            h = jax.nn.relu(layer(h, train))
        return jax.nn.relu(last(h, train) + (x if self.shortcut is None else self.shortcut(x, train)))


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over the picture, classifier."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        c, shared = config, {"style": STYLES[config.stem], "rngs": rngs, "dtype": dtype}
        self.large = c.stem == "imagenet"
        self.stem = NormedConv(3, c.channels[0], *((7, 2) if self.large else (3, 1)), **shared)
        self.stages = nnx.List()
        width = c.channels[0]
        for stage, (depth, inside) in enumerate(zip(c.depths, c.channels, strict=True)):
            blocks = nnx.List()
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(Residual(width, inside, stride, bottleneck=c.bottleneck, **shared))
                width = inside * EXPANSION if c.bottleneck else inside
            self.stages.append(blocks)
        self.classifier = classifier_head(c.features, c.classes, rngs=rngs, dtype=dtype)

    def __call__(self, images: Float[Array, "B Y X 3"], train: bool) -> Outputs:
        """Classifies pictures (normalised colours, channels last)."""
        x = jax.nn.relu(self.stem(images.astype(self.classifier.kernel[...].dtype), train))
        if self.large:
            around = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)
        for stage in self.stages:
            for block in stage:
                x = block(x, train)
        features = jnp.mean(x, axis=(1, 2))
        return Outputs(self.classifier(features), features)


def resnet_tensors(config: ResNetConfig) -> Tensors:
    """Names of the tensors in a checkpoint of transformers' ResNetForImageClassification."""
    tensors = hf_normed_conv("resnet.embedder.embedder", ("stem",)) | linear("classifier.1", ("classifier",), bias=True)
    width = config.channels[0]
    for stage, (depth, inside) in enumerate(zip(config.depths, config.channels, strict=True)):
        out = inside * EXPANSION if config.bottleneck else inside
        for number in range(depth):
            name, path = f"resnet.encoder.stages.{stage}.layers.{number}", ("stages", stage, number)
            for i in range(3 if config.bottleneck else 2):
                tensors |= hf_normed_conv(f"{name}.layer.{i}", (*path, "convs", i))
            if number == 0 and (stage or width != out):
                tensors |= hf_normed_conv(f"{name}.shortcut", (*path, "shortcut"))
        width = out
    return tensors

"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), with stems for ImageNet and for CIFAR."""

import dataclasses
from typing import Any, Self

import jax.numpy as jnp
from flax import nnx

from models.errors import UserError
from models.hf.config import Section
from models.hf.tensors import Tensors, batch_norm, depthwise_conv, linear
from models.layers.conv import UNIFORM, ConvStyle
from models.vision.classification import check_stem, hf_classes, hf_normed_conv
from models.vision.inverted_residuals import Block, InvertedResidualNet, Plan, Stem, chained, round_to_8

STAGES = (  # expansion, channels, blocks, stride (table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
WHOLE_IN_CIFAR = 5
"""Number of the stage that has stride 1 in the CIFAR variant."""


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """Sizes of a MobileNetV2.

    Attributes:
        width: factor on the channels; the head has at least 1280.
        classes: outputs of the classifier.
        stem: "imagenet": 3x3 of stride 2, as in the paper; "cifar": the variant of weiaicunzai/pytorch-cifar100, with a
            1x1 stem padded by 1, stride 1 in the sixth stage, an expanding convolution in every block, biases, and
            kernels that start as PyTorch's. There is no dropout before the classifier.
        same: whether convolutions are padded as in TensorFlow, like the checkpoints that Google published for
            transformers; else by k // 2, like torchvision's.
        epsilon: of the batch normalisation; 1e-3 in those checkpoints.
        stages: expansion, channels, blocks, stride of each.
    """

    width: float = 1.0
    classes: int = 1000
    stem: str = "imagenet"
    same: bool = False
    epsilon: float = 1e-5
    stages: tuple[tuple[int, int, int, int], ...] = STAGES

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            UserError: if the stem is unknown or the width is not positive.
        """
        check_stem(self.stem)
        if not self.width > 0:
            raise UserError(f"MobileNetV2's width must be positive, not {self.width}.")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Three narrow blocks with the CIFAR stem, for tests."""
        stages = ((1, 16, 1, 1), (2, 24, 2, 2))
        return dataclasses.replace(cls(0.25, 10, "cifar", stages=stages), **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """Reads a config.json; what Hugging Face's format leaves out there has the published default.

        `check` the section afterwards (`reading` does).
        """
        for name, value in (
            ("num_channels", 3),
            ("depth_divisible_by", 8),
            ("min_depth", 8),
            ("expand_ratio", 6),
            ("output_stride", 32),
            ("first_layer_is_expansion", True),
            ("finegrained_output", True),
            ("hidden_act", "relu6"),
        ):
            section.only(name, value)
        config = cls(
            width=section.get("depth_multiplier", float, 1.0),
            classes=hf_classes(section),
            same=section.get("tf_padding", bool, True),
            epsilon=section.get("layer_norm_eps", float, 1e-3),
        )
        first = config.plan.blocks[0]
        if first.features_in == first.features_out:  # here the block adds its input, in transformers it never does
            text = f"{section.path('depth_multiplier')} is {config.width}, but must be at least 0.28"
            section.problem(text, None)
        return config

    @property
    def plan(self) -> Plan:
        """The network, layer by layer."""
        cifar = self.stem == "cifar"
        first = round_to_8(32 * self.width)
        stages = tuple(
            (
                count,
                Block(0, round_to_8(channels * self.width), expansion, 3, 1 if cifar and i == WHOLE_IN_CIFAR else s),
            )
            for i, (expansion, channels, count, s) in enumerate(self.stages)
        )
        return Plan(
            stem=Stem(first, kernel=1, stride=1, padding=1) if cifar else Stem(first),
            blocks=chained(first, tuple(stages)),
            head=round_to_8(1280 * max(self.width, 1.0)),
            classes=self.classes,
            style=(
                ConvStyle(self.epsilon, same=self.same, use_bias=True, init=UNIFORM)
                if cifar
                else ConvStyle(self.epsilon, same=self.same)
            ),
            always_expand=cifar,
        )


class MobileNetV2(InvertedResidualNet):
    """The network of a configuration."""

    def __init__(self, config: MobileNetV2Config, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        super().__init__(config.plan, rngs=rngs, dtype=dtype)


def mobilenet_v2_tensors(config: MobileNetV2Config) -> Tensors:
    """Names of the tensors in a checkpoint of transformers' MobileNetV2ForImageClassification (ImageNet stem)."""
    model = "mobilenet_v2."
    tensors = linear("classifier", ("classifier",), bias=True)
    tensors |= hf_normed_conv(f"{model}conv_stem.first_conv", ("stem",)) | hf_normed_conv(f"{model}conv_1x1", ("head",))
    for i, block in enumerate(config.plan.blocks):
        name, path = (
            f"{model}layer.{i - 1}" if i else f"{model}conv_stem",
            ("blocks", i),
        )  # their stem has our first block
        inside = block.features_in * block.expansion
        if block.expansion > 1:
            tensors |= hf_normed_conv(f"{name}.expand_1x1", (*path, "expand"))
        filters, at = f"{name}.conv_3x3", (*path, "depthwise")
        tensors |= depthwise_conv(f"{filters}.convolution", (*at, "conv"), inside, block.kernel)
        tensors |= batch_norm(f"{filters}.normalization", (*at, "norm"))
        tensors |= hf_normed_conv(f"{name}.reduce_1x1", (*path, "project"))
    return tensors

"""EfficientNet-Lite: EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6.

As in TensorFlow's reference, the stem, the head and the number of blocks in the first and last stage are not scaled.
The encoder of pictures, with pretrained weights, has the batch normalisation folded into the convolutions; the same
network is trained with it.
"""

import dataclasses
import math
from typing import Any, Self

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from models.hf.load import joined_shape
from models.hf.tensors import Path, Tensors, batch_norm, conv, depthwise_conv, linear
from models.hub.weights import fetch
from models.layers.conv import ConvStyle, folded
from models.layers.init import FastRngs, Params, abstract_params
from models.readers.legacy_pickle import read_legacy_state_dict
from models.vision.classification import check_stem
from models.vision.inverted_residuals import Block, InvertedResidualNet, Plan, Stem, chained, round_to_8

EPSILON = 1e-3
STAGES = (  # blocks and what they are like, before scaling (EfficientNet-B0, table 1)
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
        stem_stride: of the first convolution.
        normed: whether batch normalisation follows the convolutions, for training; else it is folded into them.
        stages: blocks of each stage, before scaling.
    """

    width: float
    depth: float
    classes: int = 1000
    stem: int = 32
    head: int = 1280
    stem_stride: int = 2
    normed: bool = False
    stages: tuple[tuple[int, Block], ...] = STAGES

    @classmethod
    def lite0(cls) -> Self:
        """EfficientNet-Lite0: 4.65 M parameters, 224 pixels, ImageNet-1k."""
        return cls(1.0, 1.0)

    @classmethod
    def trainable(cls, classes: int, stem: str, width: float = 1.0) -> Self:
        """Lite0 with batch normalisation.

        Args:
            classes: outputs of the classifier.
            stem: "imagenet", or "cifar": stride 1 in the first convolution, so that 32 pixels give 2 x 2 vectors (there
                is no published variant for such pictures).
            width: factor on the channels.

        Raises:
            UserError: if the stem is unknown.
        """
        check_stem(stem)
        return cls(width, 1.0, classes, stem_stride=1 if stem == "cifar" else 2, normed=True)

    @classmethod
    def tiny(cls) -> Self:
        """Three narrow blocks with batch normalisation and a stem of stride 1, for tests."""
        stages = ((1, Block(0, 16, 1, 5, 2)), (2, Block(0, 24, 2, 3, 2)))
        return cls(0.25, 1.0, 10, 8, 64, stem_stride=1, normed=True, stages=stages)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order, after scaling."""
        ends = (0, len(self.stages) - 1)
        return chained(
            self.stem,
            tuple(
                (
                    count if index in ends else math.ceil(count * self.depth),
                    dataclasses.replace(block, features_out=round_to_8(block.features_out * self.width)),
                )
                for index, (count, block) in enumerate(self.stages)
            ),
        )

    @property
    def plan(self) -> Plan:
        """The network, layer by layer."""
        style = ConvStyle(EPSILON if self.normed else None, use_bias=not self.normed, same=True)
        return Plan(Stem(self.stem, stride=self.stem_stride), self.blocks, self.head, self.classes, style)


class EfficientNetLite(InvertedResidualNet):
    """The network of a configuration; `features` and `logits` are for the one with folded normalisation."""

    def __init__(self, config: EfficientNetLiteConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        super().__init__(config.plan, rngs=rngs, dtype=dtype)

    def features(self, images: Float[Array, "B Y X 3"] | Int[Array, "B Y X 3"]) -> Float[Array, "B Y/32 X/32 C"]:
        """The map before the head convolution ([B, 7, 7, 320] for Lite0 at 224 pixels).

        Args:
            images: RGB, values 0 to 255 (any number type), channels last.
        """
        return self.map((images.astype(self.classifier.kernel[...].dtype) - 127) / 128, train=False)

    def logits(self, features: Float[Array, "B Y X C"]) -> Float[Array, "B classes"]:
        """ImageNet logits from the map that `features` gives."""
        return self.outputs(features, train=False).logits


def load_efficientnet_lite0() -> tuple[nnx.GraphDef, Params]:
    """Graph definition and float32 parameters (NumPy) of Lite0.

    ``nnx.merge(graph, params).features(images)`` runs it.

    Raises:
        UserError: if the weights cannot be fetched or read.
    """
    config = EfficientNetLiteConfig.lite0()
    graph, _ = abstract_params(lambda: EfficientNetLite(config, rngs=FastRngs(0)))
    return graph, folded(read_efficientnet_lite0(), EPSILON)


def read_efficientnet_lite0() -> Params:
    """Parameters and running statistics (NumPy) of Lite0 as it was trained, with batch normalisation.

    Raises:
        UserError: if the weights cannot be fetched or read.
    """
    config = dataclasses.replace(EfficientNetLiteConfig.lite0(), normed=True)
    _, shapes = abstract_params(lambda: EfficientNetLite(config, rngs=FastRngs(0)))
    wanted: dict[Any, Any] = flatten_dict(shapes)
    state = read_legacy_state_dict(fetch("efficientnet-lite0"))
    found = {}
    for name, tensor in efficientnet_lite_tensors(config).items():
        ours = wanted[tensor.path].shape
        found[tensor.path] = state[name].reshape(joined_shape(tensor, ours)).transpose(tensor.order or range(len(ours)))
    return unflatten_dict(found)


def efficientnet_lite_tensors(config: EfficientNetLiteConfig) -> Tensors:
    """Names of the tensors of lukemelas/EfficientNet-PyTorch, batch normalisation not folded."""

    def normed(conv_name: str, norm_name: str, path: Path) -> Tensors:
        return conv(conv_name, (*path, "conv"), 2) | batch_norm(norm_name, (*path, "norm"))

    tensors = normed("_conv_stem", "_bn0", ("stem",)) | normed("_conv_head", "_bn1", ("head",))
    tensors |= linear("_fc", ("classifier",), bias=True)
    for i, block in enumerate(config.blocks):
        name, path = f"_blocks.{i}.", ("blocks", i)
        if block.expansion > 1:
            tensors |= normed(f"{name}_expand_conv", f"{name}_bn0", (*path, "expand"))
        inside, at = block.features_in * block.expansion, (*path, "depthwise")
        tensors |= depthwise_conv(f"{name}_depthwise_conv", (*at, "conv"), inside, block.kernel)
        tensors |= batch_norm(f"{name}_bn1", (*at, "norm"))
        tensors |= normed(f"{name}_project_conv", f"{name}_bn2", (*path, "project"))
    return tensors

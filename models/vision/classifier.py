"""Picture classifiers as pure functions of their parameters and of the running statistics of batch normalisation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from models.layers.init import FastRngs, Params
from models.vision.classification import Outputs
from models.vision.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from models.vision.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from models.vision.resnet import ResNet, ResNetConfig


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network and its configuration: equal ones are equal, so that it can be a static argument of `jax.jit`.

    `init` and `apply` run inside jit, grad and vmap (over keys, and over parameters and statistics with a leading
    axis), and on an Auto mesh with the batch divided over any axis: statistics are then those of the whole batch.

    Attributes:
        network: a module ``network(config, rngs=..., dtype=...)``, called with images and `train`.
        config: frozen dataclass of its sizes.
    """

    network: Callable[..., nnx.Module]
    config: Any

    def init(self, key: Key[Array, ""]) -> tuple[Params, Params]:
        """Fresh parameters, and running statistics of a batch normalisation that has seen nothing; float32."""
        _, params, stats = nnx.split(self.network(self.config, rngs=FastRngs(key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def apply(
        self, params: Params, stats: Params, images: Float[Array, "B Y X 3"], *, train: bool
    ) -> tuple[Outputs, Params]:
        """Classifies pictures.

        Args:
            params: nested dict. In whatever type they are the convolutions run, so to run in bfloat16 cast the float32
                ones inside the differentiated function.
            stats: nested dict, float32.
            images: normalised colours; converted to the type of the parameters.
            train: whether batch normalisation takes the batch's statistics, and moves the running ones.

        Returns:
            Logits and features; the statistics, moved in training.

        Raises:
            ValueError: if the images have another shape, or in training are too few to have a variance.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"Images must be [batch, height, width, 3], not {images.shape}; put the colours last.")
        module = nnx.merge(_graph(self), params, stats)
        outputs = module(images, train)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def shapes(self) -> tuple[Params, Params]:
        """Parameters and statistics as ``jax.ShapeDtypeStruct``; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))


@functools.cache
def _graph(classifier: Classifier) -> nnx.GraphDef:
    module = nnx.eval_shape(lambda: classifier.network(classifier.config, rngs=FastRngs(0)))
    return nnx.split(module, nnx.Param, nnx.BatchStat)[0]


def _resnet18(classes: int, stem: str, width: float = 1.0) -> Classifier:
    return Classifier(ResNet, ResNetConfig.resnet18(width, classes=classes, stem=stem))


def _resnet50(classes: int, stem: str, width: float = 1.0) -> Classifier:
    return Classifier(ResNet, ResNetConfig.resnet50(width, classes=classes, stem=stem))


def _mobilenet_v2(classes: int, stem: str, width: float = 1.0) -> Classifier:
    return Classifier(MobileNetV2, MobileNetV2Config(width, classes, stem))


def _efficientnet_lite0(classes: int, stem: str, width: float = 1.0) -> Classifier:
    return Classifier(EfficientNetLite, EfficientNetLiteConfig.trainable(classes, stem, width))


CLASSIFIERS: dict[str, Callable[..., Classifier]] = {
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    "mobilenet_v2": _mobilenet_v2,
    "efficientnet_lite0": _efficientnet_lite0,
}
"""Name -> ``factory(classes, stem, width=1.0)``; the stem is one of `models.vision.classification.STEMS`."""

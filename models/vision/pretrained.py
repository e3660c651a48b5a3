"""Picture classifiers from checkpoint folders of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from models.hf.checkpoint import open_checkpoint
from models.hf.config import Section, model_type, reading
from models.hf.source import Source
from models.hf.tensors import Tensors
from models.layers.init import FastRngs, Params
from models.vision.classification import HF_COUNTERS
from models.vision.classifier import Classifier
from models.vision.mobilenet_v2 import MobileNetV2, MobileNetV2Config, mobilenet_v2_tensors
from models.vision.resnet import ResNet, ResNetConfig, resnet_tensors

FAMILIES: dict[str, tuple[Callable[..., nnx.Module], Callable[[Section], Any], Callable[[Any], Tensors]]] = {
    "resnet": (ResNet, ResNetConfig.from_hf, resnet_tensors),
    "mobilenet_v2": (MobileNetV2, MobileNetV2Config.from_hf, mobilenet_v2_tensors),
}
"""model_type of a config.json -> the network, its configuration, the names of its tensors."""


def load_classifier(folder: Path) -> tuple[Classifier, Params, Params]:
    """A classifier, its parameters and its running statistics, in float32.

    Args:
        folder: as `save_pretrained` of ResNetForImageClassification or MobileNetV2ForImageClassification writes it.

    Raises:
        UserError: if there is no such checkpoint, or it is damaged, or its configuration is not supported.
    """
    with reading(folder) as section:
        network, configure, name_tensors = FAMILIES[model_type(section, FAMILIES)]
        classifier = Classifier(network, configure(section))

    def make(dtype: jnp.dtype) -> nnx.Module:
        return network(classifier.config, rngs=FastRngs(0), dtype=dtype)

    tensors = name_tensors(classifier.config)
    source = Source(open_checkpoint(folder), make, tensors, section.values, ignore=(HF_COUNTERS,))
    _, whole = source.load(jnp.dtype(jnp.float32))
    params, stats = (_like(whole, part) for part in classifier.shapes())
    return classifier, params, stats


def _like(whole: Params, part: Params) -> Params:
    """Of `whole` the leaves that `part` has."""
    leaves: dict[Any, Any] = flatten_dict(whole)
    return unflatten_dict({path: leaves[path] for path in flatten_dict(part)})

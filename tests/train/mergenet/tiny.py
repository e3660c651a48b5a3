"""A recipe that compiles in seconds: tiny classifiers, and a few real pictures."""

import dataclasses
from typing import Any

from mergenet_jax import MergeConfig, Pair
from models.vision.classifier import CLASSIFIERS, Classifier
from models.vision.mobilenet_v2 import MobileNetV2, MobileNetV2Config
from models.vision.resnet import ResNet, ResNetConfig
from train.mergenet.config import SGD, ModelSpec, Recipe

MODELS = {
    "tiny_resnet": lambda classes, stem, width=1.0: Classifier(ResNet, ResNetConfig((1,), False, classes, stem, (6,))),
    "tiny_mobilenet": lambda classes, stem, width=1.0: Classifier(
        MobileNetV2, MobileNetV2Config(0.25, classes, stem, stages=((1, 16, 1, 2), (2, 24, 1, 2)))
    ),
}
STILL: dict[str, Any] = {"layers": 1, "heads": 2, "attention_dropout": 0.0, "output_dropout": 0.0}


def register() -> None:
    """Adds the classifiers."""
    CLASSIFIERS.update(MODELS)


def unregister() -> None:
    """The inverse."""
    for name in MODELS:
        del CLASSIFIERS[name]


def recipe(**changes: Any) -> Recipe:
    """Two epochs of two steps."""
    base = Recipe(
        data="cifar10",
        source=ModelSpec("tiny_resnet"),
        target=ModelSpec("tiny_mobilenet"),
        pairs=(Pair("classifier/kernel", "blocks/1/project/conv/kernel"),),
        self_pairs=(Pair("classifier/kernel", "blocks/1/project/conv/kernel"),),
        merge=MergeConfig(cycle=1, **STILL),
        plus=MergeConfig.plus(cycle=1, layers=1),
        adapter_constant=0,
        epochs=2,
        batch=8,
        train_pictures=16,
        validation_pictures=10,
        test_pictures=10,
        source_sgd=SGD(0.05),
        target_sgd=SGD(0.05),
        check_every=1,
    )
    return dataclasses.replace(base, **changes)

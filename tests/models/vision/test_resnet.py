"""ResNet against transformers, and its sizes."""

import json

import pytest
from transformers import ResNetConfig as HFConfig
from transformers import ResNetForImageClassification

from models.errors import UserError
from models.vision.classifier import CLASSIFIERS
from models.vision.pretrained import load_classifier
from models.vision.resnet import ResNetConfig, resnet_tensors
from tests.models.hf_classifiers import assert_equals_transformers, count
from tests.tiers import quick_first


@pytest.mark.parametrize("kind", quick_first(("basic", "bottleneck")))
def test_equals_transformers(kind, tmp_path):
    expansion = {"basic": 1, "bottleneck": 4}[kind]
    sizes = [width * expansion for width in (4, 6, 8)]
    config = HFConfig(embedding_size=4, hidden_sizes=sizes, depths=[2, 1, 2], layer_type=kind, num_labels=5)
    model = ResNetForImageClassification(config)
    classifier = assert_equals_transformers(model, tmp_path, (49, 38), resnet_tensors)
    assert classifier.config == ResNetConfig((2, 1, 2), kind == "bottleneck", 5, "imagenet", (4, 6, 8))


def test_published_sizes():
    """Numbers of parameters as torchvision and weiaicunzai/pytorch-cifar100 have them."""
    for name, classes, stem, expected in (
        ("resnet18", 1000, "imagenet", 11_689_512),
        ("resnet50", 1000, "imagenet", 25_557_032),
        ("resnet18", 100, "cifar", 11_220_132),
        ("resnet50", 100, "cifar", 23_705_252),
    ):
        params, _ = CLASSIFIERS[name](classes, stem).shapes()
        assert count(params) == expected


def test_where_the_classifier_is():
    """The tensor that MergeNet's paper reads: PyTorch's fc.weight [100, 2048]."""
    params, _ = CLASSIFIERS["resnet50"](100, "cifar").shapes()
    assert params["classifier"]["kernel"].shape == (2048, 100)
    assert params["stages"][3][2]["convs"][1]["conv"]["kernel"].shape == (3, 3, 512, 512)


def test_width():
    params, _ = CLASSIFIERS["resnet18"](10, "cifar", 0.25).shapes()
    assert params["stem"]["conv"]["kernel"].shape == (3, 3, 3, 16)
    assert params["classifier"]["kernel"].shape == (128, 10)


def test_bad_configurations(tmp_path):
    with pytest.raises(UserError, match="no stem 'cifar10'; take one of cifar, imagenet"):
        ResNetConfig.resnet18(stem="cifar10")
    with pytest.raises(UserError, match="positive number of blocks and channels for each stage"):
        ResNetConfig((2, 2), True)
    values = {"model_type": "resnet", "depths": [1], "hidden_sizes": [10], "downsample_in_bottleneck": True}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="downsample_in_bottleneck is True.*hidden_sizes must be multiples of 4"):
        load_classifier(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match="not supported; supported are resnet, mobilenet_v2"):
        load_classifier(tmp_path)

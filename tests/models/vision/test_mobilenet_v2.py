"""MobileNetV2 against transformers, and its sizes."""

import json

import pytest
import torch
from transformers import MobileNetV2Config as HFConfig
from transformers import MobileNetV2ForImageClassification

from models.errors import UserError
from models.hf.load import checkpoint_shape
from models.vision.classifier import CLASSIFIERS, Classifier
from models.vision.mobilenet_v2 import MobileNetV2, MobileNetV2Config, mobilenet_v2_tensors
from models.vision.pretrained import load_classifier
from tests.models.hf_classifiers import assert_equals_transformers, count
from tests.tiers import quick_first


@pytest.mark.parametrize("tf_padding", quick_first((True, False)))
def test_equals_transformers(tf_padding, tmp_path):
    config = HFConfig(depth_multiplier=0.35, tf_padding=tf_padding, num_labels=5, classifier_dropout_prob=0.0)
    model = MobileNetV2ForImageClassification(config)
    classifier = assert_equals_transformers(model, tmp_path, (49, 38), mobilenet_v2_tensors)
    assert classifier.config == MobileNetV2Config(0.35, 5, "imagenet", same=tf_padding, epsilon=1e-3)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_widths_as_transformers_rounds_them(width):
    with torch.device("meta"):
        state = MobileNetV2ForImageClassification(HFConfig(depth_multiplier=width)).state_dict()
    classifier = Classifier(MobileNetV2, MobileNetV2Config(width, 2))
    params, stats = classifier.shapes()
    for name, tensor in mobilenet_v2_tensors(classifier.config).items():
        leaf = stats if "running" in name else params
        for key in tensor.path:
            leaf = leaf[key]
        assert checkpoint_shape(tensor, leaf.shape) == tuple(state[name].shape)


def test_published_sizes():
    """Numbers of parameters: torchvision's, and the CIFAR variant's in the code of MergeNet's authors."""
    for classes, stem, expected in ((1000, "imagenet", 3_504_872), (100, "cifar", 2_369_380)):
        params, _ = CLASSIFIERS["mobilenet_v2"](classes, stem).shapes()
        assert count(params) == expected


def test_where_the_last_projection_is():
    """The tensor that MergeNet's paper writes: stage6[2].residual[6].weight [160, 960, 1, 1] of the authors' code."""
    params, _ = CLASSIFIERS["mobilenet_v2"](100, "cifar").shapes()
    assert params["blocks"][15]["project"]["conv"]["kernel"].shape == (1, 1, 960, 160)
    assert params["blocks"][16]["project"]["conv"]["kernel"].shape == (1, 1, 960, 320)
    assert params["classifier"]["kernel"].shape == (1280, 100)


def test_bad_configurations(tmp_path):
    with pytest.raises(UserError, match="no stem 'small'"):
        MobileNetV2Config(stem="small")
    with pytest.raises(UserError, match="width must be positive, not 0"):
        MobileNetV2Config(width=0)
    values = {"model_type": "mobilenet_v2", "depth_multiplier": 0.25, "output_stride": 16}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="output_stride is 16.*depth_multiplier is 0.25, but must be at least 0.28"):
        load_classifier(tmp_path)

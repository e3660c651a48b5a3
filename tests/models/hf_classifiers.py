"""Tiny picture classifiers of transformers with random parameters and statistics, to compare ours with."""

import jax
import numpy as np
import torch

from models.hf.tensors import Tensors
from models.vision.classifier import Classifier
from models.vision.pretrained import load_classifier
from tests.models.qwen2_5_omni.towers import randomise
from tests.models.videollama2 import seeded
from tests.tolerances import LOGITS

apply = jax.jit(Classifier.apply, static_argnums=0, static_argnames="train")


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random parameters and statistics; its normalisation keeps 0.9 of the statistics at a step."""
    randomise(model, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 0.1
                part.running_mean.add_(0.1 * torch.randn(part.running_mean.shape, generator=generator))
                part.running_var.mul_(0.5 + torch.rand(part.running_var.shape, generator=generator))
    return model


def assert_equals_transformers(model: torch.nn.Module, folder, size: tuple[int, int], tensors) -> Classifier:
    """Our loader reads what `save_pretrained` wrote; outputs and statistics are equal, in evaluation and training."""
    randomised(model).save_pretrained(folder)
    classifier, params, stats = load_classifier(folder)
    images = seeded.image(1, (16, *size, 3))  # of few, statistics would magnify rounding errors
    theirs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for train in (False, True):
        model.train(train)
        with torch.no_grad():
            expected = model(theirs).logits.numpy()
        outputs, moved = apply(classifier, params, stats, images, train=train)
        np.testing.assert_allclose(outputs.logits, expected, **LOGITS)
        assert_statistics(moved, model.state_dict(), tensors(classifier.config))
    return classifier


def assert_statistics(stats, state: dict[str, torch.Tensor], tensors: Tensors) -> None:
    """All running means and variances are those of a state dict."""
    checked = 0
    for name, tensor in tensors.items():
        if name.endswith(("running_mean", "running_var")):
            ours = stats
            for key in tensor.path:
                ours = ours[key]
            np.testing.assert_allclose(ours, state[name].numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
            checked += 1
    assert checked == len(jax.tree.leaves(stats)) > 0


def count(tree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

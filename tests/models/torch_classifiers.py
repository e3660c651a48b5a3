"""The classifiers that transformers lacks, as plain torch.nn.functional over our parameters and statistics.

Strides and paddings are written out here, from weiaicunzai/pytorch-cifar100's layouts and EfficientNet-Lite's table.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F

Tree = dict[Any, Any]


def to_torch(tree: Tree) -> Tree:
    """The arrays as tensors; parameters must then be told to require gradients."""
    return jax.tree.map(lambda x: torch.tensor(np.asarray(x)), tree)


class Run:
    """One pass in training or evaluation; in training it moves `stats` in place."""

    def __init__(self, epsilon: float, train: bool) -> None:
        self.epsilon = epsilon
        self.train = train

    def normed(self, p: Tree, s: Tree, x: torch.Tensor, stride: int = 1, pad: int = 0) -> torch.Tensor:
        kernel, bias = p["conv"]["kernel"], p["conv"].get("bias")
        depthwise = kernel.ndim == 3
        weight = kernel.permute(2, 0, 1)[:, None] if depthwise else kernel.permute(3, 2, 0, 1)
        y = F.conv2d(x, weight, bias, stride, pad, groups=len(weight) if depthwise else 1)
        mean, var, scale, shift = s["norm"]["mean"], s["norm"]["var"], p["norm"]["scale"], p["norm"]["bias"]
        return F.batch_norm(y, mean, var, scale, shift, self.train, 0.1, self.epsilon)

    def same(self, p: Tree, s: Tree, x: torch.Tensor, stride: int) -> torch.Tensor:
        """As `normed`, padded as TensorFlow does."""
        size = p["conv"]["kernel"].shape[0]
        (top, bottom), (left, right) = (
            (total // 2, total - total // 2)
            for total in (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
        )
        return self.normed(p, s, F.pad(x, (left, right, top, bottom)), stride)

    def residual(self, p: Tree, s: Tree, x: torch.Tensor, stride: int) -> torch.Tensor:
        """A bottleneck of ResNet."""
        y = F.relu(self.normed(p["convs"][0], s["convs"][0], x))
        y = F.relu(self.normed(p["convs"][1], s["convs"][1], y, stride, 1))
        y = self.normed(p["convs"][2], s["convs"][2], y)
        return F.relu(y + (self.normed(p["shortcut"], s["shortcut"], x, stride) if "shortcut" in p else x))

    def inverted(self, p: Tree, s: Tree, x: torch.Tensor, stride: int, same: bool) -> torch.Tensor:
        """An inverted residual block."""
        y = F.relu6(self.normed(p["expand"], s["expand"], x)) if "expand" in p else x
        part = p["depthwise"], s["depthwise"], y, stride
        y = F.relu6(self.same(*part) if same else self.normed(*part, pad=1))
        y = self.normed(p["project"], s["project"], y)
        return x + y if x.shape == y.shape else y


def _head(p: Tree, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.mean((2, 3)), p["classifier"]["kernel"].T, p["classifier"]["bias"])


def resnet(run: Run, p: Tree, s: Tree, x: torch.Tensor) -> torch.Tensor:
    """`ResNetConfig.tiny`: stages of two blocks and one, CIFAR stem."""
    x = F.relu(run.normed(p["stem"], s["stem"], x, pad=1))
    for stage, number, stride in ((0, 0, 1), (0, 1, 1), (1, 0, 2)):
        x = run.residual(p["stages"][stage][number], s["stages"][stage][number], x, stride)
    return _head(p, x)


def mobilenet_v2(run: Run, p: Tree, s: Tree, x: torch.Tensor) -> torch.Tensor:
    """`MobileNetV2Config.tiny`, CIFAR stem: 1x1, padded."""
    x = F.relu6(run.normed(p["stem"], s["stem"], x, pad=1))
    for i, stride in enumerate((1, 2, 1)):
        assert "expand" in p["blocks"][i]
        x = run.inverted(p["blocks"][i], s["blocks"][i], x, stride, same=False)
    return _head(p, F.relu6(run.normed(p["head"], s["head"], x)))


def efficientnet_lite(run: Run, p: Tree, s: Tree, x: torch.Tensor) -> torch.Tensor:
    """`EfficientNetLiteConfig.tiny`, stem of stride 1."""
    x = F.relu6(run.same(p["stem"], s["stem"], x, 1))
    for i, stride in enumerate((2, 2, 1)):
        x = run.inverted(p["blocks"][i], s["blocks"][i], x, stride, same=True)
    return _head(p, F.relu6(run.normed(p["head"], s["head"], x)))


Forward = Callable[[Run, Tree, Tree, torch.Tensor], torch.Tensor]

"""Scenario 1 of the paper: CIFAR-100, ResNet-50 to MobileNetV2 as the authors' code trains them.

python -m train.mergenet --recipe mergenet_cifar100 --workdir runs/cifar100
python -m train.mergenet --recipe mergenet_cifar100 --direction backward --workdir runs/cifar100_back
"""

from mergenet_jax import MergeConfig, Pair
from train.mergenet.config import ModelSpec, Recipe

RECIPE = Recipe(
    data="cifar100",
    source=ModelSpec("resnet50"),
    target=ModelSpec("mobilenet_v2"),
    # [100, 2048] is read; [160, 960], the last 1x1 convolution of the sixth stage, is written.
    pairs=(Pair("classifier/kernel", "blocks/15/project/conv/kernel"),),
    self_pairs=(Pair("classifier/kernel", "blocks/15/project/conv/kernel"),),
    merge=MergeConfig.authors_code(cycle=2),
)

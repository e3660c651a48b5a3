"""CIFAR-10, a ResNet-18 to a narrower one, on a subset and a short schedule: for CPUs.

python -m train.mergenet --recipe mergenet_cifar10_narrow --arm plus_frozen --workdir runs/narrow
python -m eval.mergenet --recipe mergenet_cifar10_narrow --arms none start plus_frozen plus_zero kd dkd
"""

import dataclasses

from mergenet_jax import MergeConfig, Pair
from train.mergenet.config import ModelSpec, read_recipe

BLOCKS = [f"stages/{stage}/{block}" for stage in range(4) for block in range(2)]
KERNELS = ["stem/conv/kernel", *(f"{block}/convs/{i}/conv/kernel" for block in BLOCKS for i in range(2))]
KERNELS += [*(f"stages/{stage}/0/shortcut/conv/kernel" for stage in (1, 2, 3)), "classifier/kernel"]

RECIPE = dataclasses.replace(
    read_recipe("mergenet_cifar10"),
    target=ModelSpec("resnet18", 0.125),
    pairs=(Pair("classifier/kernel", "classifier/kernel"),),
    self_pairs=(),
    # Evenly spaced channels of all layers fit each other.
    plus=MergeConfig.plus(cycle=2, layers=1, init_from_source=True),
    plus_pairs=(Pair("classifier/kernel", "classifier/kernel"),),
    init_pairs=tuple(Pair(kernel, kernel) for kernel in KERNELS),
)

"""Scenario 4: a MobileNetV2 learns from its own classifier, on CIFAR-100.

python -m train.mergenet --recipe mergenet_self --workdir runs/self
"""

import dataclasses

from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(read_recipe("mergenet_cifar100"), arm="self")

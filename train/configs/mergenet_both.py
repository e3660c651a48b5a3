"""Scenario 1 both ways at once: each of ResNet-50 and MobileNetV2 reads the other, on CIFAR-100.

python -m train.mergenet --recipe mergenet_both --workdir runs/both
"""

import dataclasses

from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(read_recipe("mergenet_cifar100"), direction="both")

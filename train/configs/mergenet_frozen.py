"""Scenario 5: as scenario 1, with a ResNet-50 that is trained first and then stays as it is.

python -m train.mergenet --recipe mergenet_frozen --workdir runs/frozen
python -m train.mergenet --recipe mergenet_frozen --source-checkpoint FOLDER/export/target --workdir runs/frozen
"""

import dataclasses

from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(read_recipe("mergenet_cifar100"), arm="frozen")

"""CIFAR-10, a narrow ResNet-18 to a narrow MobileNetV2, on a subset and a short schedule: for CPUs.

python -m train.mergenet --recipe mergenet_cifar10 --arm ARM --seeds SEED --workdir runs/ARM/SEED
python -m eval.mergenet --workdir runs/experiment
"""

import dataclasses

from mergenet_jax import MergeConfig, Pair
from train.mergenet.config import SGD, ModelSpec, Recipe

SCHEDULE = SGD(cosine=True, warmup=1.0)

RECIPE = Recipe(
    data="cifar10",
    source=ModelSpec("resnet18", 0.25),
    # The stem of stride 2 and 4x4 maps from then on: a step takes a sixth of what it takes with the CIFAR stem.
    target=ModelSpec("mobilenet_v2", 0.5, "imagenet"),
    # The classifier is read and the last 1x1 convolution of the sixth stage written, as in the authors' code.
    pairs=(Pair("classifier/kernel", "blocks/15/project/conv/kernel"),),
    self_pairs=(Pair("classifier/kernel", "blocks/15/project/conv/kernel"),),
    merge=MergeConfig.authors_code(cycle=2),
    # Kernels that mean the same in both networks: filters of pixels, and scores of the same classes.
    plus=MergeConfig.plus(cycle=2, layers=1, init_from_source=True),
    plus_pairs=(Pair("stem/conv/kernel", "stem/conv/kernel"), Pair("classifier/kernel", "classifier/kernel")),
    adapter_constant=1,
    epochs=10,
    batch=64,
    train_pictures=6_400,
    validation_pictures=2_000,
    source_sgd=SCHEDULE,
    target_sgd=dataclasses.replace(SCHEDULE, rate=0.02),
    source_epochs=8,
    source_pictures=20_000,
    dkd_warmup=1,
)

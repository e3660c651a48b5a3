"""Scenario 8 of MergeNet: the trained SmolAV's projectors into a fresh SmolAV's narrow ones, for CPUs.

python -m eval.mergenet_smolav --recipe smolav_small --workdir runs/smolav_small
"""

from mergenet_jax import MergeConfig, Pair
from train.mergenet.av.config import Recipe

KERNELS = [f"{branch}/{layer}/kernel" for branch in ("video", "audio") for layer in ("up", "down")]

RECIPE = Recipe(
    # As in the authors' code the kernel that is written is one that a normalisation follows.
    pairs=tuple(Pair(kernel, kernel) for kernel in KERNELS if "down" in kernel),
    # Copies must hold both layers of a hidden unit.
    init_pairs=tuple(Pair(kernel, kernel) for kernel in KERNELS),
    merge=MergeConfig.authors_code(layers=1, cycle=4),
    plus=MergeConfig.plus(layers=1, cycle=4, init_from_source=True),
)

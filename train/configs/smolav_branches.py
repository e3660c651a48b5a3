"""Scenario 8 of MergeNet between senses: the trained SmolAV's ears into a fresh SmolAV's eyes, for CPUs.

python -m eval.mergenet_smolav --recipe smolav_branches --workdir runs/smolav_branches
"""

from mergenet_jax import MergeConfig, Pair
from train.mergenet.av.config import Recipe

PAIRS = (Pair("audio/down/kernel", "video/down/kernel"),)

RECIPE = Recipe(
    pairs=PAIRS,
    init_pairs=PAIRS,
    merge=MergeConfig.authors_code(layers=1, cycle=4),
    plus=MergeConfig.plus(layers=1, cycle=4, init_from_source=True),
)

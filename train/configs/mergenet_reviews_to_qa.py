"""Scenario 3, the other way: DistilBERT that judges reviews (imdb_reviews) to BERT that answers questions (SQuAD v2.0).

python -m train.mergenet --recipe mergenet_reviews_to_qa --source.weights DISTILBERT --target.weights BERT \
    --workdir runs/reviews_to_qa
"""

import dataclasses

from mergenet_jax import Pair
from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(
    dataclasses.replace(read_recipe("mergenet_qa_to_reviews"), direction="backward").directed(),
    self_pairs=(Pair("encoder/layers/0/attn/out/kernel", "encoder/layers/11/attn/out/kernel"),),
)

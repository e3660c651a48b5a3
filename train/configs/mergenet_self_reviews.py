"""Scenario 4 on text: DistilBERT that judges reviews learns from its own first layer.

python -m train.mergenet --recipe mergenet_self_reviews --target.weights DISTILBERT --workdir runs/self_reviews
"""

import dataclasses

from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(read_recipe("mergenet_qa_to_reviews"), arm="self")

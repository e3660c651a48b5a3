"""Scenario 2, the other way: retrieval (coco_captions) to questions about pictures (VQA v2), with the same substitute.

python -m train.mergenet --recipe mergenet_retrieval_to_vqa --source.weights BERT --target.weights BERT \
    --source.vision-weights SIGLIP --target.vision-weights SIGLIP --workdir runs/retrieval_to_vqa
"""

import dataclasses

from train.mergenet.config import read_recipe

RECIPE = dataclasses.replace(
    dataclasses.replace(read_recipe("mergenet_vqa_to_retrieval"), direction="backward").directed(),
    self_pairs=read_recipe("mergenet_vqa_to_retrieval").self_pairs,
)

"""Scenario 2, with a substitute for X-VLM: questions about pictures (VQA v2) to retrieval (coco_captions).

X-VLM (Swin and BERT, with fusion by cross-attention) is not in this project. In its place stand a SigLIP vision
transformer and BERT, joined late (`models/vision/image_text.py`); answers are classes and not generated.

python -m train.mergenet --recipe mergenet_vqa_to_retrieval --source.weights BERT --target.weights BERT \
    --source.vision-weights SIGLIP --target.vision-weights SIGLIP --workdir runs/vqa_to_retrieval

BERT and SIGLIP are folders of Hugging Face checkpoints, such as bert-base-uncased and siglip-base-patch16-224.
"""

from mergenet_jax import MergeConfig, Pair
from train.mergenet.task_config import TaskRecipe
from train.mergenet.tasks.spec import TaskSpec

RECIPE = TaskRecipe(
    source=TaskSpec("vqa", length=24, batch=64),
    target=TaskSpec("retrieval", length=32, batch=64),
    # The output of attention in the text towers' last layer, 768 x 768.
    pairs=(Pair("text/layers/11/attn/out/kernel", "text/layers/11/attn/out/kernel"),),
    self_pairs=(Pair("text/layers/0/attn/out/kernel", "text/layers/11/attn/out/kernel"),),
    merge=MergeConfig.authors_code(cycle=2, rescale="frobenius"),
    epochs=5,
)

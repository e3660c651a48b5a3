"""Scenario 3: BERT that answers questions (SQuAD v2.0) to DistilBERT that judges reviews (imdb_reviews).

python -m train.mergenet --recipe mergenet_qa_to_reviews --source.weights BERT --target.weights DISTILBERT \
    --workdir runs/qa_to_reviews

BERT and DISTILBERT are folders of Hugging Face checkpoints, such as bert-base-uncased and distilbert-base-uncased.
"""

from mergenet_jax import MergeConfig, Pair
from train.mergenet.task_config import TaskRecipe
from train.mergenet.tasks.spec import TaskSpec

RECIPE = TaskRecipe(
    source=TaskSpec("questions", "bert_base", length=384, stride=128, batch=32),
    target=TaskSpec("reviews", "distilbert_base", length=256, batch=32),
    # The output of attention in the last layer, 768 x 768: what is known there of the task and not of the words.
    pairs=(Pair("encoder/layers/11/attn/out/kernel", "encoder/layers/5/attn/out/kernel"),),
    self_pairs=(Pair("encoder/layers/0/attn/out/kernel", "encoder/layers/5/attn/out/kernel"),),
    # No BatchNorm follows in BERT, so the output keeps the kernel's norm.
    merge=MergeConfig.authors_code(cycle=2, rescale="frobenius"),
)

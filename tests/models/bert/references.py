"""Random models of transformers, as checkpoint folders."""

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

from tests.models.qwen2_5_omni.towers import randomise

CONFIGS = {"bert": BertConfig, "distilbert": DistilBertConfig}
MODELS = {
    "bert": {
        "encoder": BertModel,
        "classification": BertForSequenceClassification,
        "question_answering": BertForQuestionAnswering,
        "masked": BertForMaskedLM,
        "pretraining": BertForPreTraining,
    },
    "distilbert": {
        "encoder": DistilBertModel,
        "classification": DistilBertForSequenceClassification,
        "question_answering": DistilBertForQuestionAnswering,
        "masked": DistilBertForMaskedLM,
    },
}


def reference(config, task, *, labels=2, seed=0, **options):
    """A model of random weights, in evaluation mode."""
    values = {name: value for name, value in config.to_hf().items() if name != "model_type"}
    theirs = CONFIGS[config.model_type](**values, num_labels=labels)
    model = MODELS[config.model_type][task](theirs, **options).eval()
    randomise(model, seed)
    return model


def batch(config, rows, length, seed=0):
    """Tokens, a mask with ragged ends and some holes, and token types (zeros for DistilBERT)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    mask = np.arange(length)[None] < rng.integers(1, length + 1, (rows, 1))
    mask &= rng.random((rows, length)) < 0.9
    mask[:, 0] = True
    types = rng.integers(0, max(config.type_vocab_size, 1), (rows, length)).astype(np.int32)
    return tokens, mask, types


def their_outputs(model, tokens, mask, types):
    """What `Bert` returns for the model's task, by transformers."""
    inputs = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(mask).long()}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = torch.tensor(types).long()
    with torch.no_grad():
        out = model(**inputs)
    if "start_logits" in out:
        return out.start_logits.numpy(), out.end_logits.numpy()
    return (out.logits if "logits" in out else out.last_hidden_state).numpy()

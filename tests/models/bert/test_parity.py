"""BERT and DistilBERT against transformers, through folders that `save_pretrained` writes."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from models.bert.config import BertConfig
from models.bert.modeling import Bert, BertModel
from models.bert.params import bert_tensors, load_bert
from models.hf.load import checkpoint_shape
from models.layers.init import FastRngs, abstract_params
from tests.models.bert.references import CONFIGS, MODELS, batch, reference, their_outputs
from tests.tiers import quick_first, quick_only
from tests.tolerances import LOGITS

SHAPES = (  # changes to the tiny configuration, rows, tokens, classes
    ({}, 3, 9, 2),
    ({"num_attention_heads": 1, "intermediate_size": 40, "vocab_size": 31, "num_hidden_layers": 1}, 2, 32, 3),
    ({"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}, 4, 5, 7),
    ({"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 3}, 1, 17, 1),
    ({"num_attention_heads": 4, "max_position_embeddings": 320, "num_hidden_layers": 1}, 2, 300, 2),  # in blocks
    ({"hidden_size": 8, "intermediate_size": 8, "max_position_embeddings": 12, "num_hidden_layers": 1}, 5, 12, 10),
)
FAMILIES = ("bert", "distilbert")
HEADS = ("classification", "question_answering")


def config_of(family, number):
    """Some BERTs have other LayerNorms and token types than the published ones."""
    config = BertConfig.tiny(family, **SHAPES[number][0])
    if family == "bert" and number % 2:
        config = dataclasses.replace(config, layer_norm_eps=1e-3, type_vocab_size=3, hidden_dropout_prob=0.3)
    return config


@pytest.mark.parametrize("number", quick_only(range(len(SHAPES)), (0, 4)))
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family, number, tmp_path):
    config, (_, rows, length, labels) = config_of(family, number), SHAPES[number]
    inputs = batch(config, rows, length, seed=number)
    for task in HEADS:
        classes = labels if task == "classification" else 2
        model = reference(config, task, labels=classes, seed=number)
        model.save_pretrained(tmp_path / task)
        loaded, params = load_bert(tmp_path / task)
        assert loaded == BertModel(config, task, classes)
        ours = jax.jit(loaded.apply)(params, *inputs)
        theirs = their_outputs(model, *inputs)
        assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **LOGITS), ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_encoders(family, tmp_path):
    config = config_of(family, 1)
    model = reference(config, "encoder")
    model.save_pretrained(tmp_path)
    ours, params = load_bert(tmp_path)
    assert list(params) == ["encoder"]
    tokens, mask, types = batch(config, 3, 9)
    run = jax.jit(ours.apply)
    np.testing.assert_allclose(run(params, tokens, mask, types), their_outputs(model, tokens, mask, types), **LOGITS)
    whole = their_outputs(model, tokens, mask, np.zeros_like(types))
    np.testing.assert_allclose(run(params, tokens, mask.astype(np.int32)), whole, **LOGITS)  # both defaults


@pytest.mark.parametrize(
    ("family", "task", "rate"),
    quick_first(
        [
            ("bert", "classification", "hidden_dropout_prob"),
            ("distilbert", "question_answering", "qa_dropout"),
            ("bert", "classification", "attention_probs_dropout_prob"),
            ("bert", "classification", "classifier_dropout"),
            ("bert", "question_answering", "classifier_dropout"),
            ("distilbert", "question_answering", "hidden_dropout_prob"),
            ("distilbert", "classification", "attention_probs_dropout_prob"),
            ("distilbert", "classification", "classifier_dropout"),
        ],
        2,
    ),
)
def test_dropout_is_where_transformers_has_it(family, task, rate):
    """With one rate at 1 and the others at 0 nothing is left to chance, and training mode can be compared."""
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "qa_dropout")
    config = BertConfig.tiny(family, num_hidden_layers=1, **(dict.fromkeys(rates, 0.0) | {rate: 1.0}))
    model = reference(config, task)
    model.set_attn_implementation("eager")
    inputs = batch(config, 3, 9)
    still = their_outputs(model, *inputs)
    expected = their_outputs(model.train(), *inputs)
    params = params_of(model, config, task)
    run = jax.jit(BertModel(config, task).apply)
    found = run(params, *inputs, key=jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **LOGITS), found, expected)
    changed = any(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0.01), still, expected)))
    assert changed == ((family, task, rate) != ("bert", "question_answering", "classifier_dropout"))


def params_of(model, config, task):
    """A transformers model's parameters, without a folder."""
    state = model.state_dict()
    flat = {}
    for name, tensor in bert_tensors(config, task).items():
        value = state[name].numpy()
        flat[tensor.path] = jax.device_put(value.T if tensor.order else value)
    nested: dict = {}
    for path, value in flat.items():
        at = nested
        for step in path[:-1]:
            at = at.setdefault(step, {})
        at[path[-1]] = value
    return nested


@functools.cache
def shapes_of(config, task):
    _, shapes = abstract_params(lambda: Bert(config, task, rngs=FastRngs(0)))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


@pytest.mark.parametrize(
    ("config", "total"),
    [(BertConfig.bert_base_uncased(), 109_482_240), (BertConfig.distilbert_base_uncased(), 66_362_880)],
    ids=FAMILIES,
)
def test_presets_are_those_of_transformers(config, total):
    defaults = CONFIGS[config.model_type]()
    for task in ("encoder", *HEADS):
        with torch.device("meta"):
            model = MODELS[config.model_type][task](defaults)
        theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        shapes = shapes_of(config, task)
        ours = {n: checkpoint_shape(t, shapes[t.path]) for n, t in bert_tensors(config, task).items()}
        pooler = {name: shape for name, shape in theirs.items() if task == "encoder" and name.startswith("pooler.")}
        assert ours | pooler == theirs
        assert len(ours) == len(shapes)
        if task == "encoder":
            assert sum(parameter.numel() for parameter in model.parameters()) == total
            assert sum(map(math.prod, [*shapes.values(), *pooler.values()])) == total
    read = {name: value for name, value in config.to_hf().items() if name != "classifier_dropout"}
    assert read == {name: getattr(defaults, name) for name in read}

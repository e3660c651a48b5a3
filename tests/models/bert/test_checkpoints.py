"""Checkpoint folders of every kind, and one sentence for what does not fit."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from models.bert.config import BertConfig
from models.bert.modeling import BertModel
from models.bert.params import bert_tensors, hf_config, load_bert
from models.errors import UserError
from models.hf.export import save_params
from tests.models.bert.references import batch, reference, their_outputs
from tests.tolerances import LOGITS

CONFIGS = {family: BertConfig.tiny(family, num_hidden_layers=1) for family in ("bert", "distilbert")}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a checkpoint, written once; and its transformers model."""
    made = {}

    def get(family, task, labels=2):
        if (name := (family, task, labels)) not in made:
            model = reference(CONFIGS[family], task, labels=labels)
            folder = tmp_path_factory.mktemp("checkpoint")
            model.save_pretrained(folder)
            made[name] = (folder, model)
        return made[name]

    return get


@functools.cache
def drawn(family):
    """Fresh parameters of a classifier with 5 classes."""
    return jax.jit(BertModel(CONFIGS[family], "classification", 5).init)(KEY)


def changed(saved, folder, family="bert", task="classification", tensors=lambda x: x, **config):
    """A copy of a checkpoint with other tensors and settings."""
    source = saved(family, task)[0]
    values = json.loads((source / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    save_file(tensors(load_file(source / "model.safetensors")), folder / "model.safetensors")
    return folder


def holds(params, model, config, task, parts):
    """That the parameters are those of a transformers model."""
    flat, state = flatten_dict(params), model.state_dict()
    seen = 0
    for name, tensor in bert_tensors(config, task, f"{config.model_type}.").items():
        if tensor.path[0] in parts:
            bare = name if name in state else name.removeprefix(f"{config.model_type}.")
            value = state[bare].numpy()
            np.testing.assert_array_equal(flat[tensor.path], value.T if tensor.order else value)
            seen += 1
    assert seen == sum(path[0] in parts for path in flat)


@pytest.mark.parametrize(
    ("family", "stored", "parts"),
    [
        ("bert", "encoder", {"encoder", "pooler"}),
        ("bert", "pretraining", {"encoder", "pooler"}),
        ("bert", "masked", {"encoder"}),
        ("bert", "question_answering", {"encoder"}),
        ("distilbert", "encoder", {"encoder"}),
        ("distilbert", "masked", {"encoder"}),
    ],
)
def test_pretrained_encoders_with_a_fresh_head(saved, family, stored, parts):
    folder, model = saved(family, stored)
    config = CONFIGS[family]
    ours, params = load_bert(folder, "classification", 5, key=KEY)
    assert ours == BertModel(config, "classification", 5)
    holds(params, model, config, "classification", parts)
    fresh = drawn(family)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    for part in {"encoder", "pooler", "head"} - parts:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), params[part], fresh[part])
    with pytest.raises(
        UserError, match="has no (pooler and )?head for classification; give a key to draw new ones, or"
    ):
        load_bert(folder, "classification", 5)
    _, bare = load_bert(folder, "encoder")
    holds(bare, model, config, "encoder", {"encoder"})


def test_question_answering_from_a_classifier(saved):
    folder, model = saved("distilbert", "classification")
    _, params = load_bert(folder, "question_answering", key=KEY)
    holds(params, model, CONFIGS["distilbert"], "question_answering", {"encoder"})
    assert params["head"]["kernel"].shape == (16, 2) and "pooler" not in params


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_names_of_published_files(saved, tmp_path, file):
    """gamma and beta, buffers, the heads of pretraining, and few settings: as bert-base-uncased is published."""
    folder, model = saved("bert", "pretraining")
    old = load_file(folder / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): x
        for n, x in old.items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in old and any(name.startswith("cls.") for name in old)
    old["bert.embeddings.position_ids"] = np.arange(32)[None]
    if file.endswith(".bin"):
        torch.save({name: torch.tensor(value) for name, value in old.items()}, tmp_path / file)
    else:
        save_file(old, tmp_path / file)
    kept = (
        "attention_probs_dropout_prob",
        "hidden_act",
        "hidden_dropout_prob",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "type_vocab_size",
        "vocab_size",
        "model_type",
    )
    values = json.loads((folder / "config.json").read_text())
    published = {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "layer_norm_eps": 1e-12}
    published |= {"pad_token_id": 0, "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0"}
    (tmp_path / "config.json").write_text(json.dumps({name: values[name] for name in kept} | published))
    _, params = load_bert(tmp_path, "classification", key=KEY)
    holds(params, model, CONFIGS["bert"], "classification", {"encoder", "pooler"})


@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back(saved, tmp_path, family):
    """What is fine-tuned here is read by transformers."""
    config = CONFIGS[family]
    kinds = {"classification": AutoModelForSequenceClassification, "question_answering": AutoModelForQuestionAnswering}
    for task, kind in kinds.items():
        labels = 3 if task == "classification" else 2
        folder, model = saved(family, task, labels)
        _, params = load_bert(folder)
        save_params(tmp_path / task, params, bert_tensors(config, task), hf_config(config, task, labels))
        again, told = kind.from_pretrained(tmp_path / task, output_loading_info=True)
        assert type(again) is type(model) and not any(told.values()), told
        inputs = batch(config, 2, 6)
        jax.tree.map(np.testing.assert_array_equal, their_outputs(again.eval(), *inputs), their_outputs(model, *inputs))
        assert load_bert(tmp_path / task)[0].config == config


def test_prefixes_of_a_bare_encoder(saved, tmp_path):
    """Old files of bare encoders have the prefix too."""
    folder, model = saved("bert", "encoder")
    prefixed = changed(saved, tmp_path, task="encoder", tensors=lambda x: {f"bert.{n}": v for n, v in x.items()})
    _, params = load_bert(prefixed)
    holds(params, model, CONFIGS["bert"], "encoder", {"encoder"})
    inputs = batch(CONFIGS["bert"], 2, 6)
    out = jax.jit(BertModel(CONFIGS["bert"], "encoder").apply)(params, *inputs)
    np.testing.assert_allclose(out, their_outputs(model, *inputs), **LOGITS)


def without(*names):
    return lambda tensors: {name: value for name, value in tensors.items() if name not in names}


def twice(tensors):
    return tensors | {"bert.embeddings.LayerNorm.gamma": tensors["bert.embeddings.LayerNorm.weight"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tensors": without("classifier.bias")}, r"1 missing: classifier\.bias[.]$"),
        ({"tensors": without("classifier.bias", "classifier.weight")}, r"2 missing: classifier\.weight, classifier\.b"),
        ({"tensors": without("bert.pooler.dense.bias")}, r"1 missing: bert\.pooler\.dense\.bias[.]$"),
        ({"tensors": without("bert.embeddings.LayerNorm.weight")}, r"1 missing: bert\.embeddings\.LayerNorm\.weight"),
        ({"tensors": twice}, r"1 unknown: bert\.embeddings\.LayerNorm\.gamma[.]$"),
        ({"tensors": lambda x: x | {"bert.adapter.weight": np.zeros(3, np.float32)}}, r"1 unknown: bert\.adapter\.wei"),
        ({"num_hidden_layers": 2}, r"16 missing: bert\.encoder\.layer\.1\.attention\.self\.query\.weight, "),
        ({"vocab_size": 97}, r"1 of a wrong shape: bert\.embeddings\.word_embeddings\.weight is \[96, 16\], not \[97"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"classifier\.weight is \[2, 16\], not \[3, 16\]"),
        ({"id2label": []}, r"id2label must be of type dict, not \[\]"),
        ({"model_type": "distilbert"}, r"cannot be used: activation is missing; dim is missing;"),
        ({"model_type": None}, "cannot be used: model_type is missing[.]$"),
        ({"family": "distilbert", "tensors": without("pre_classifier.bias")}, r"1 missing: pre_classifier\.bias[.]$"),
        (
            {"tensors": lambda x: {name: v.astype(np.int64) if "query.weight" in name else v for name, v in x.items()}},
            r"1 not of a floating type .*: bert\.encoder\.layer\.0\.attention\.self\.query\.weight is int64",
        ),
    ],
)
def test_checkpoints_that_do_not_fit(saved, tmp_path, change, sentence):
    changed(saved, tmp_path, **change)
    with pytest.raises(UserError, match=sentence):
        load_bert(tmp_path, "classification", key=KEY)


def test_other_mistakes(saved, tmp_path):
    folder, _ = saved("bert", "classification", 3)
    with pytest.raises(UserError, match="has 3 classes, not 2; leave the number out, or take the checkpoint's encoder"):
        load_bert(folder, "classification", 2)
    with pytest.raises(UserError, match="at least one class, not 0"):
        load_bert(saved("bert", "encoder")[0], "classification", 0, key=KEY)
    with pytest.raises(UserError, match="no task 'regression'; take one of"):
        load_bert(folder, "regression")
    with pytest.raises(UserError, match=r"is no checkpoint: it has no config\.json"):
        load_bert(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"is no checkpoint: it has none of model\.safetensors"):
        load_bert(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_bert(tmp_path)

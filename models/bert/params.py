"""BERT and DistilBERT checkpoints in Hugging Face's format: encoders alone, with a head, or as pretrained."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from acckv_jax.sharding import ShardingRules
from models.bert.config import BertConfig
from models.bert.modeling import BertModel, Task, check_task
from models.errors import UserError
from models.hf.checkpoint import Checkpoint, open_checkpoint
from models.hf.config import Section, reading
from models.hf.source import Source
from models.hf.tensors import Tensor, Tensors, linear, norm
from models.layers.init import FastRngs, Params
from models.placement import abstract_params_on

LAYERS = {"bert": "encoder.layer", "distilbert": "transformer.layer"}
DENSE = {
    "bert": {
        ("attn", "q"): "attention.self.query",
        ("attn", "k"): "attention.self.key",
        ("attn", "v"): "attention.self.value",
        ("attn", "out"): "attention.output.dense",
        ("up",): "intermediate.dense",
        ("down",): "output.dense",
    },
    "distilbert": {
        ("attn", "q"): "attention.q_lin",
        ("attn", "k"): "attention.k_lin",
        ("attn", "v"): "attention.v_lin",
        ("attn", "out"): "attention.out_lin",
        ("up",): "ffn.lin1",
        ("down",): "ffn.lin2",
    },
}
"""Of a layer: our paths -> names."""
NORMS = {
    "bert": {"attn_norm": "attention.output.LayerNorm", "mlp_norm": "output.LayerNorm"},
    "distilbert": {"attn_norm": "sa_layer_norm", "mlp_norm": "output_layer_norm"},
}
HEADS: dict[Task, str] = {"classification": "classifier", "question_answering": "qa_outputs"}
CLASSES = {
    "encoder": "Model",
    "classification": "ForSequenceClassification",
    "question_answering": "ForQuestionAnswering",
}
"""Ends of the names of transformers' classes."""
PRETRAINING = ("cls.*", "vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*")
"""The heads of pretraining, which are not read."""
OLD = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""Names that files converted from TensorFlow have, such as the published ones."""


def bert_tensors(config: BertConfig, task: Task, prefix: str | None = None) -> Tensors:
    """Names of the tensors of `models.bert.modeling.Bert`.

    Args:
        config: of the encoder.
        task: of the model.
        prefix: of the encoder's names; None takes the one that transformers writes: none for the encoder alone, else
            "bert." or "distilbert.".
    """
    kind = config.model_type
    if prefix is None:
        prefix = "" if task == "encoder" else f"{kind}."
    tensors: Tensors = {
        f"{prefix}embeddings.word_embeddings.weight": Tensor(("encoder", "tokens", "embedding")),
        f"{prefix}embeddings.position_embeddings.weight": Tensor(("encoder", "positions")),
        **norm(f"{prefix}embeddings.LayerNorm", ("encoder", "norm"), bias=True),
    }
    if not config.distilled:
        types = Tensor(("encoder", "token_types", "embedding"))
        tensors[f"{prefix}embeddings.token_type_embeddings.weight"] = types
    for i in range(config.num_hidden_layers):
        name, path = f"{prefix}{LAYERS[kind]}.{i}", ("encoder", "layers", i)
        for ours, theirs in DENSE[kind].items():
            tensors |= linear(f"{name}.{theirs}", (*path, *ours), bias=True)
        for our, theirs in NORMS[kind].items():
            tensors |= norm(f"{name}.{theirs}", (*path, our), bias=True)
    if task == "classification":
        tensors |= linear(_pooler(config, prefix), ("pooler",), bias=True)
    if task != "encoder":
        tensors |= linear(HEADS[task], ("head",), bias=True)
    return tensors


def _pooler(config: BertConfig, prefix: str) -> str:
    return "pre_classifier" if config.distilled else f"{prefix}pooler.dense"


def hf_config(config: BertConfig, task: Task, labels: int = 2) -> dict[str, Any]:
    """The config.json of a model, to be written beside `bert_tensors` by `models.hf.export.save_params`."""
    family = "DistilBert" if config.distilled else "Bert"
    values = config.to_hf() | {"architectures": [family + CLASSES[task]]}
    if task == "classification":
        names = [f"LABEL_{i}" for i in range(labels)]
        values |= {"id2label": {str(i): name for i, name in enumerate(names)}}
        values |= {"label2id": {name: i for i, name in enumerate(names)}}
    return values


@dataclasses.dataclass(frozen=True)
class BertSource:
    """A checkpoint, and the model that it is opened for.

    Attributes:
        source: the parts that the checkpoint has.
        model: of the task.
        fresh: the parts that it has not ("pooler", "head"): `load` draws them.
    """

    source: Source
    model: BertModel
    fresh: tuple[str, ...]

    def load(self, dtype: jnp.dtype, key: Array | None = None) -> Params:
        """The parameters, divided over the mesh that is set (`jax.set_mesh`), if any.

        Args:
            dtype: of the parameters.
            key: PRNG key to draw the parts that the checkpoint has not.

        Raises:
            UserError: if the checkpoint does not fit its configuration, or there are such parts and no key.
        """
        folder = self.source.checkpoint.folder
        if self.fresh and key is None:
            raise UserError(
                f"The checkpoint in {folder} has no {' and '.join(self.fresh)} for {self.model.task}; give a key to "
                "draw new ones, or name a checkpoint that was trained for it."
            )
        _, params = self.source.load(dtype)
        if not self.fresh:
            return params
        mesh = jax.sharding.get_mesh()
        placed = None
        if not mesh.empty:
            _, shapes = abstract_params_on(mesh, lambda: self.model.module(FastRngs(0), dtype))
            placed = jax.tree.map(lambda leaf: leaf.sharding, _parts(shapes, self.fresh))
        draw = jax.jit(lambda key: _parts(self.model.init(key, dtype), self.fresh), out_shardings=placed)
        return params | draw(key)


def _parts(params: Params, names: tuple[str, ...]) -> Params:
    return {name: params[name] for name in names}


def open_bert(
    folder: Path,
    section: Section,
    task: Task | None = None,
    labels: int | None = None,
    *,
    rules: ShardingRules = ShardingRules(),
) -> BertSource:
    """Opens a checkpoint: an encoder alone, a sequence classifier, a model for question answering or a pretrained one.

    Heads of other tasks that it may have are not read.

    Args:
        folder: of the checkpoint.
        section: its config.json.
        task: what it is to be used for; None takes what it has a head for, and without one the encoder.
        labels: classes, for classification; None takes those that config.json names, or 2 where it names none.
        rules: mesh axes.

    Raises:
        UserError: if there is no checkpoint, it is damaged, its config.json is incomplete or not supported, or its
            classifier has another number of classes.
    """
    if task is not None:
        check_task(task)
    config = BertConfig.from_hf(section)
    stored = len(section.get("id2label", dict, {})) or section.get("num_labels", int, 2)
    section.check()
    checkpoint = open_checkpoint(folder)
    names = checkpoint.tensors.keys()
    heads: list[Task] = [kind for kind, head in HEADS.items() if f"{head}.weight" in names or _declares(section, kind)]
    chosen: Task = task or (heads[0] if heads else "encoder")
    headed = chosen in heads
    if chosen == "classification" and headed and labels not in (None, stored):
        raise UserError(
            f"The classifier in {folder} has {stored} classes, not {labels}; leave the number out, or take the "
            "checkpoint's encoder alone."
        )
    model = BertModel(config, chosen, stored if labels is None else labels, rules)
    prefix = f"{config.model_type}."
    prefix = prefix if any(name.startswith(prefix) for name in names) else ""
    pooled = headed or any(name.startswith(_pooler(config, prefix)) for name in names)
    fresh = {"pooler": chosen == "classification" and not pooled, "head": chosen != "encoder" and not headed}
    missing = tuple(part for part, absent in fresh.items() if absent)
    tensors = bert_tensors(config, chosen, prefix)
    found = {_as_stored(name, checkpoint): tensor for name, tensor in tensors.items() if tensor.path[0] not in missing}
    others = [f"{head}.*" for other, head in HEADS.items() if other != chosen]
    if chosen != "classification":
        others += [f"{prefix}pooler.*", "pre_classifier.*"]

    def make(dtype: jnp.dtype) -> nnx.Module:
        module = model.module(FastRngs(0), dtype)
        for part in missing:
            setattr(module, part, None)
        return module

    values = section.values | {"architectures": hf_config(config, chosen)["architectures"]}
    source = Source(checkpoint, make, found, values, ignore=(*PRETRAINING, *others))
    return BertSource(source, model, missing)


def _declares(section: Section, task: Task) -> bool:
    """Whether a config.json says that the model is of the class for a task."""
    return any(str(name).endswith(CLASSES[task]) for name in section.get("architectures", list, []))


def _as_stored(name: str, checkpoint: Checkpoint) -> str:
    """The name that a norm's tensor has in this file."""
    for new, old in OLD.items():
        if name.endswith(new) and name not in checkpoint.tensors:
            older = name.removesuffix(new) + old
            return older if older in checkpoint.tensors else name
    return name


def load_bert(
    folder: Path,
    task: Task | None = None,
    labels: int | None = None,
    *,
    key: Array | None = None,
    rules: ShardingRules = ShardingRules(),
    dtype: jnp.dtype = jnp.dtype(jnp.float32),
) -> tuple[BertModel, Params]:
    """The model of a checkpoint folder and its parameters; see `open_bert` and `BertSource.load`.

    Raises:
        UserError: if the folder holds no checkpoint that fits.
    """
    with reading(folder) as section:
        opened = open_bert(folder, section, task, labels, rules=rules)
    return opened.model, opened.load(dtype, key)

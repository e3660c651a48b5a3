"""One encoder for BERT (Devlin et al. 2019, arXiv 1810.04805) and DistilBERT (Sanh et al. 2019, arXiv 1910.01108).

Post-norm layers over the sum of token, position and (BERT) token type embeddings. Two heads: classes of a text or pair
of texts from its first token, and start and end of an answer.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.sharding import ShardingRules, head_axis
from models.bert.config import BertConfig
from models.errors import UserError
from models.layers.attention import attend
from models.layers.dropout import dropout, split
from models.layers.init import FastRngs, Params, abstract_params
from models.layers.linear import Embed, Linear
from models.layers.norm import LayerNorm

Task = Literal["encoder", "classification", "question_answering"]
TASKS: tuple[Task, ...] = ("encoder", "classification", "question_answering")
HIDDEN = -1e30
"""Added to the scores of keys that are padding: finite, so that a row of nothing but padding is no NaN."""
Key = Array | None


class BertAttention(nnx.Module):
    """Bidirectional self-attention."""

    def __init__(self, config: BertConfig, *, rules: ShardingRules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        width, heads = config.hidden_size, head_axis(rules, config.num_attention_heads)
        shared = {"use_bias": True, "batch": rules.batch, "spread": config.initializer_range}
        shared |= {"rngs": rngs, "dtype": dtype}
        self.q, self.k, self.v = (Linear(width, width, axis_out=heads, **shared) for _ in range(3))
        self.out = Linear(width, width, axis_in=heads, **shared)
        self.heads = config.num_attention_heads
        self.rate = config.attention_probs_dropout_prob
        self.axes = (rules.batch, heads)

    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], key: Key) -> Float[Array, "B T D"]:
        """Applies the layer; every token attends to the tokens of its row that `mask` marks."""
        q, k, v = (p(x).reshape(*x.shape[:2], self.heads, -1) for p in (self.q, self.k, self.v))
        hidden = jnp.where(mask, 0.0, HIDDEN)[:, None, None]  # [B, 1, 1, S]

        def drop(weights: Array, rows: Array) -> Array:
            own = None if key is None else jax.random.fold_in(key, rows[0])
            return dropout(weights, self.rate, own, self.axes)

        out = attend(q, k, v, bias=lambda rows: hidden, drop=None if key is None else drop)
        return self.out(out.reshape(x.shape))


class BertLayer(nnx.Module):
    """Attention and GELU MLP, each followed by its residual and norm."""

    def __init__(self, config: BertConfig, *, rules: ShardingRules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        shared = {"use_bias": True, "batch": rules.batch, "spread": c.initializer_range, "rngs": rngs, "dtype": dtype}
        self.attn = BertAttention(c, rules=rules, rngs=rngs, dtype=dtype)
        self.attn_norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.up = Linear(c.hidden_size, c.intermediate_size, axis_out=rules.mlp, **shared)
        self.down = Linear(c.intermediate_size, c.hidden_size, axis_in=rules.mlp, **shared)
        self.mlp_norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.rates = (0.0 if c.distilled else c.hidden_dropout_prob, c.hidden_dropout_prob)
        self.batch = rules.batch

    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"], key: Key) -> Float[Array, "B T D"]:
        """Applies the layer."""
        weights_key, attn_key, mlp_key = split(key, 3)
        h = dropout(self.attn(x, mask, weights_key), self.rates[0], attn_key, (self.batch,))
        x = self.attn_norm(x + h)
        h = self.down(jax.nn.gelu(self.up(x), approximate=False))
        return self.mlp_norm(x + dropout(h, self.rates[1], mlp_key, (self.batch,)))


class BertEncoder(nnx.Module):
    """Embeddings and layers."""

    def __init__(self, config: BertConfig, *, rules: ShardingRules, rngs: nnx.Rngs, dtype: jnp.dtype) -> None:
        c = config
        shared = {"batch": rules.batch, "spread": c.initializer_range, "rngs": rngs, "dtype": dtype}
        self.tokens = Embed(c.vocab_size, c.hidden_size, vocab=rules.vocab, **shared)
        init = jax.nn.initializers.normal(c.initializer_range)
        self.positions = nnx.Param(init(rngs.params(), (c.max_position_embeddings, c.hidden_size), dtype))
        self.token_types = None if c.distilled else Embed(c.type_vocab_size, c.hidden_size, vocab=None, **shared)
        self.norm = LayerNorm(c.hidden_size, epsilon=c.layer_norm_eps, dtype=dtype)
        self.layers = nnx.List(BertLayer(c, rules=rules, rngs=rngs, dtype=dtype) for _ in range(c.num_hidden_layers))
        self.rate = c.hidden_dropout_prob
        self.batch = rules.batch

    def __call__(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], token_types: Int[Array, "B T"] | None, key: Key
    ) -> Float[Array, "B T D"]:
        """Hidden states after the last layer; see `Bert`."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]][None]
        if self.token_types is not None:
            x = x + self.token_types(jnp.zeros_like(tokens) if token_types is None else token_types)
        keys = split(key, 1 + len(self.layers))
        x = dropout(self.norm(x), self.rate, keys[0], (self.batch,))
        for layer, own in zip(self.layers, keys[1:], strict=True):
            x = layer(x, mask, own)
        return x


class Bert(nnx.Module):
    """The encoder with what a task puts on it.

    Args:
        config: of the encoder.
        task: "encoder" has nothing more. "classification" has a dense layer over the first token, `pooler` (tanh; in
            DistilBERT, which calls it pre_classifier, ReLU), and `head`. "question_answering" has `head` alone.
        labels: classes, for classification.
        rules: mesh axes.
        rngs: random streams for initialisation.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        config: BertConfig,
        task: Task,
        labels: int = 2,
        *,
        rules: ShardingRules = ShardingRules(),
        rngs: nnx.Rngs,
        dtype: jnp.dtype = jnp.float32,
    ) -> None:
        c, pooled = config, task == "classification"
        shared = {"use_bias": True, "batch": rules.batch, "spread": c.initializer_range, "rngs": rngs, "dtype": dtype}
        self.config, self.task = c, task
        self.encoder = BertEncoder(c, rules=rules, rngs=rngs, dtype=dtype)
        self.pooler = Linear(c.hidden_size, c.hidden_size, **shared) if pooled else None
        self.head = None if task == "encoder" else Linear(c.hidden_size, labels if pooled else 2, **shared)
        self.activation = jax.nn.relu if c.distilled else jnp.tanh
        self.rate = c.classifier_dropout if pooled else c.qa_dropout
        self.batch = rules.batch

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        key: Key = None,
    ) -> Any:
        """Logits of the task.

        Args:
            tokens: ids below vocab_size.
            mask: True or 1 where a token is, False or 0 where padding is.
            token_types: ids below type_vocab_size; None means zeros. DistilBERT has none and takes no notice of them.
            key: PRNG key of dropout; None outside of training.

        Returns:
            "encoder": hidden states [B, T, D]; "classification": logits [B, C]; "question_answering": logits of start
            and end, ([B, T], [B, T]), of padding too.

        Raises:
            ValueError: if shapes do not fit each other, or there are more tokens than positions.
        """
        _check(self.config, tokens, mask, token_types)
        encoder_key, head_key = split(key, 2)
        x = self.encoder(tokens, mask.astype(bool), token_types, encoder_key)
        if self.head is None:
            return x
        if self.pooler is not None:
            x = self.activation(self.pooler(x[:, 0]))
        x = self.head(dropout(x, self.rate, head_key, (self.batch,)))
        return x if self.pooler is not None else (x[..., 0], x[..., 1])


def _check(config: BertConfig, tokens: Array, mask: Array, token_types: Array | None) -> None:
    most = config.max_position_embeddings
    if tokens.ndim != 2 or not 0 < tokens.shape[1] <= most:
        raise ValueError(f"The encoder takes tokens [B, T] with T from 1 to {most}, not {tokens.shape}; truncate them.")
    for name, x in (("mask", mask), ("token_types", token_types)):
        if x is not None and x.shape != tokens.shape:
            raise ValueError(f"The {name} must have the shape of the tokens, {tokens.shape}, not {x.shape}.")


def check_task(task: str) -> None:
    """Checks the name of a task.

    Raises:
        UserError: if there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"There is no task {task!r}; take one of {', '.join(TASKS)}.")


@dataclasses.dataclass(frozen=True)
class BertModel:
    """A model as pure functions; equal ones are equal, so that it can be a static argument of `jax.jit`.

    `init` and `apply` run inside jit, grad and vmap, on Auto and Explicit meshes and without one. The attributes are
    arguments of `Bert`.
    """

    config: BertConfig
    task: Task
    labels: int = 2
    rules: ShardingRules = ShardingRules()

    def __post_init__(self) -> None:
        """Checks the task.

        Raises:
            UserError: if there is no such task, or classes are fewer than one.
        """
        check_task(self.task)
        if self.labels < 1:
            raise UserError(f"A classifier needs at least one class, not {self.labels}.")

    def module(self, rngs: nnx.Rngs, dtype: jnp.dtype) -> Bert:
        """A module with fresh parameters."""
        return Bert(self.config, self.task, self.labels, rules=self.rules, rngs=rngs, dtype=dtype)

    def init(self, key: Array, dtype: jnp.dtype = jnp.dtype(jnp.float32)) -> Params:
        """Fresh parameters: a nested dict with keys "encoder" and, as the task has them, "pooler" and "head"."""
        return nnx.to_pure_dict(nnx.state(self.module(FastRngs(key), dtype)))

    def apply(
        self,
        params: Params,
        tokens: Int[Array, "B T"],
        mask: Bool[Array, "B T"] | Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        key: Key = None,
    ) -> Any:
        """Logits of the task, in the type of the parameters: see `Bert`."""
        return nnx.merge(_graph(self, jax.sharding.get_abstract_mesh()), params)(tokens, mask, token_types, key)

    def shapes(self) -> Params:
        """The float32 parameters as ``jax.ShapeDtypeStruct``; nothing is allocated."""
        return _define(self)[1]


def _define(model: BertModel) -> tuple[nnx.GraphDef, Params]:
    return abstract_params(lambda: model.module(FastRngs(0), jnp.dtype(jnp.float32)))


@functools.cache
def _graph(model: BertModel, mesh: AbstractMesh) -> nnx.GraphDef:
    """The graph definition under the mesh that is set, which decides whether heads can be divided."""
    return _define(model)[0]

"""The loss on answer tokens, and exact match."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.layers.init import Params
from models.smolav.config import SmolAVConfig
from train.smolav import language_model

Metrics = dict[str, Array]
"""By name a sum and its count, so that batches can be added."""
METRICS = ("loss", "exact", "later", "words")


def packed_mask(segment: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Causal; a conversation sees the media (segment 0) and itself; nobody sees padding (segment -1)."""
    queries, keys = segment[:, :, None], segment[:, None, :]
    t = segment.shape[1]
    causal = jnp.tril(jnp.ones((t, t), bool))[None]
    return causal & ((keys == 0) | (keys == queries)) & (keys >= 0)


def answer_logits(
    config: SmolAVConfig, graph: nnx.GraphDef, trained: Params, frozen: Params, batch: dict[str, Any]
) -> Float[Array, "B P V"]:
    """Logits at the P target positions of a batch of `train.smolav.batches.collate`."""
    text = language_model.embed(frozen, batch["tokens"])
    media = nnx.merge(graph, trained["media"])
    embeddings = media(text, batch["modality"], batch["seconds"], batch["video"], batch["audio"])
    hidden = language_model.forward(
        config.decoder,
        frozen,
        trained["lora"],
        config.lora_scale,
        embeddings,
        batch["positions"],
        packed_mask(batch["segment"]),
    )
    return language_model.logits(frozen, jnp.take_along_axis(hidden, batch["index"][..., None], axis=1))


def answer_loss(
    config: SmolAVConfig, graph: nnx.GraphDef, trained: Params, frozen: Params, batch: dict[str, Any]
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross entropy over answer tokens, and what was right given what was right before.

    The metrics: `loss`; `exact`, answers of one word all right, of first questions; `later`, of later ones; `words`,
    tokens of transcripts.
    """
    scores = jax.nn.log_softmax(answer_logits(config, graph, trained, frozen, batch))
    target, turn = batch["target"], batch["turn"]
    there = target >= 0
    picked = jnp.take_along_axis(scores, jnp.maximum(target, 0)[..., None], axis=-1)[..., 0]
    total, count = -jnp.sum(jnp.where(there, picked, 0.0)), jnp.sum(there, dtype=jnp.float32)
    chosen = jnp.argmax(scores, axis=-1)
    exact, of_one = exact_answers(chosen, target, batch["question"])

    def share(right: Array, counted: Array, weight: Array) -> Array:
        return jnp.stack([jnp.sum(jnp.where(which, weight, 0.0)) for which in (right & counted, counted)])

    metrics = {
        "loss": jnp.stack([total, count]),
        "exact": share(exact, turn == 1, of_one),
        "later": share(exact, turn > 1, of_one),
        "words": share(chosen == target, there & (turn == 0), jnp.ones_like(of_one)),
    }
    return total / count, metrics


def exact_answers(
    chosen: Int[Array, "B P"], target: Int[Array, "B P"], question: Int[Array, "B P"]
) -> tuple[Bool[Array, "B P"], Float[Array, "B P"]]:
    """Whether greedy decoding would give exactly the target: every token is the most likely one after those before.

    Returns:
        For every target whether its question's answer is all right; and one over the number of the question's targets,
        0 where there is no target, with which every question counts once.
    """
    there = target >= 0
    same = (question[:, :, None] == question[:, None, :]) & there[:, None, :]
    right = jnp.all(~same | (chosen == target)[:, None, :], axis=-1)
    return right & there, jnp.where(there, 1 / jnp.maximum(jnp.sum(same, axis=-1, dtype=jnp.float32), 1.0), 0.0)

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


def packed_mask(segment: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Causal; a question sees the media (segment 0) and itself; nobody sees padding (segment -1)."""
    queries, keys = segment[:, :, None], segment[:, None, :]
    t = segment.shape[1]
    causal = jnp.tril(jnp.ones((t, t), bool))[None]
    return causal & ((keys == 0) | (keys == queries)) & (keys >= 0)


def answer_logits(
    config: SmolAVConfig, graph: nnx.GraphDef, trained: Params, frozen: Params, batch: dict[str, Any]
) -> Float[Array, "B P V"]:
    """Logits at the target positions of a batch of `train.smolav.batches.collate`, P = questions x answer tokens."""
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
    index = batch["target_index"].reshape(len(hidden), -1, 1)
    return language_model.logits(frozen, jnp.take_along_axis(hidden, index, axis=1))


def answer_loss(
    config: SmolAVConfig, graph: nnx.GraphDef, trained: Params, frozen: Params, batch: dict[str, Any]
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross entropy over answer tokens; the metrics have `exact`, the fraction of answers all right."""
    scores = jax.nn.log_softmax(answer_logits(config, graph, trained, frozen, batch))
    target = batch["target"].reshape(scores.shape[:2])
    there = target >= 0
    picked = jnp.take_along_axis(scores, jnp.maximum(target, 0)[..., None], axis=-1)[..., 0]
    loss = -jnp.sum(jnp.where(there, picked, 0.0)) / jnp.sum(there, dtype=jnp.float32)
    right = exact_answers(jnp.argmax(scores, axis=-1).reshape(batch["target"].shape), batch["target"])
    asked = batch["target"][..., 0] >= 0
    return loss, {"loss": loss, "exact": jnp.sum(right & asked, dtype=jnp.float32) / jnp.sum(asked, dtype=jnp.float32)}


def exact_answers(chosen: Int[Array, "B Q A"], target: Int[Array, "B Q A"]) -> Bool[Array, "B Q"]:
    """Whether greedy decoding would give exactly the target: every token is the most likely one after those before."""
    return jnp.all((chosen == target) | (target < 0), axis=-1)

"""The loss of a single picture classifier."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mergenet_jax import LossOutput
from models.layers.init import Params
from models.vision.classifier import Classifier
from train.mergenet.distillation import cross_entropy


def own_loss(classifier: Classifier) -> Any:
    """Cross entropy of a single classifier, with the share of pictures that it gets right."""

    def loss(params: Params, stats: Params, batch: Any, key: Array) -> tuple[Array, LossOutput]:
        del key
        outputs, stats = classifier.apply(params, stats, batch["images"], train=True)
        return cross_entropy(outputs.logits, batch["labels"]), LossOutput(stats, {"top1": right(outputs, batch)})

    return loss


def right(outputs: Any, batch: Any) -> Float[Array, ""]:
    """Share of a batch's pictures whose class has the highest logit."""
    return jnp.mean((outputs.logits.argmax(-1) == batch["labels"]).astype(jnp.float32))

"""Distillation of a teacher's outputs into a student: the baselines that MergeNet is compared with.

Each is a frozen dataclass whose defaults are its authors' settings for CIFAR-100, and which is called with the outputs
of student and teacher. Only the student is differentiated. Everything is computed in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.errors import UserError
from models.vision.classification import Outputs

RKD_EPSILON = 1e-12  # features that are closer (squared distance) count as equal: no direction, no gradient


class Distillation(Protocol):
    """A distillation baseline."""

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Int[Array, " B"], epoch: float | Int[Array, ""]
    ) -> Float[Array, ""]:
        """The student's loss, its cross entropy with the labels included.

        Args:
            student: logits [B, C] and features [B, D].
            teacher: logits [B, C] and features [B, E].
            labels: classes.
            epoch: number of the epoch, the first being 1.
        """
        ...


@dataclasses.dataclass(frozen=True)
class KD:
    """Hinton et al. 2015, arXiv 1503.02531, section 2: soft targets at a temperature, weighted by its square.

    Settings of mdistiller (`mdistiller/engine/cfg.py`).

    Attributes:
        temperature: divides the logits of both.
        label_weight: of the cross entropy with the labels.
        weight: of the divergence from the teacher.
    """

    temperature: float = 4.0
    label_weight: float = 0.1
    weight: float = 0.9

    def __post_init__(self) -> None:
        _check(self, self.temperature)

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Int[Array, " B"], epoch: float | Int[Array, ""]
    ) -> Float[Array, ""]:
        """See `Distillation`; the epoch plays no part."""
        del epoch
        own, other = _pair(student.logits, teacher.logits)
        soft = _divergence(_log_softmax(other / self.temperature), _log_softmax(own / self.temperature))
        return self.label_weight * cross_entropy(own, labels) + self.weight * self.temperature**2 * soft


@dataclasses.dataclass(frozen=True)
class DKD:
    """Zhao et al. 2022, arXiv 2203.08679, section 3: the divergence of KD in two parts with own weights.

    One part compares the target's probability, the other how the rest is divided among the other classes. Settings of
    mdistiller; its `beta` depends on the pair, and 8 is that of ResNet-50 -> MobileNetV2.

    Attributes:
        alpha: weight of the target's part.
        beta: weight of the other classes' part.
        temperature: divides the logits of both.
        warmup: epochs in which the weight of both parts grows to 1.
        label_weight: of the cross entropy with the labels.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    warmup: int = 20
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self, self.temperature)
        if self.warmup < 0:
            raise UserError(f"DKD's warm-up must be 0 or more epochs, not {self.warmup}.")

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Int[Array, " B"], epoch: float | Int[Array, ""]
    ) -> Float[Array, ""]:
        """See `Distillation`."""
        own, other = _pair(student.logits, teacher.logits)
        target = _divergence(
            _target_or_not(other / self.temperature, labels), _target_or_not(own / self.temperature, labels)
        )
        rest = _divergence(
            _log_softmax(_others(other, labels) / self.temperature),
            _log_softmax(_others(own, labels) / self.temperature),
        )
        grown = jnp.minimum(jnp.asarray(epoch, jnp.float32) / max(self.warmup, 1), 1.0) if self.warmup else 1.0
        soft = self.temperature**2 * (self.alpha * target + self.beta * rest)
        return self.label_weight * cross_entropy(own, labels) + grown * soft


@dataclasses.dataclass(frozen=True)
class RKD:
    """Park et al. 2019, arXiv 1904.05068, section 3.2: the relations within a batch, RKD-DA.

    Distances of all pairs, in units of their mean, and cosines of the angles of all triplets, between the features
    before the classifier; the Huber loss compares those of student and teacher, so the widths may differ. Settings of
    mdistiller. The mean over angles includes triplets with two equal members, as there.

    Attributes:
        distance: weight of the distances' loss.
        angle: weight of the angles' loss.
        label_weight: of the cross entropy with the labels.
    """

    distance: float = 25.0
    angle: float = 50.0
    label_weight: float = 1.0

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Int[Array, " B"], epoch: float | Int[Array, ""]
    ) -> Float[Array, ""]:
        """See `Distillation`; the epoch plays no part, and the batch must have two rows or more."""
        del epoch
        own, other = _pair(student.features, teacher.features)
        if len(own) < 2:
            raise UserError(f"RKD compares the rows of a batch; make batches of 2 or more, not {len(own)}.")
        own, other = _differences(own), _differences(other)
        relations = self.distance * _huber(_distances(own), _distances(other))
        relations += self.angle * _huber(_cosines(own), _cosines(other))
        return self.label_weight * cross_entropy(student.logits, labels) + relations


@dataclasses.dataclass(frozen=True)
class NKD:
    """Yang et al. 2023, arXiv 2303.13005, section 3: the soft loss split, and its second part normalised.

    The target's probability weighs the target's log probability; the probabilities of the other classes, normalised to
    sum to one on both sides, enter a cross entropy. Settings of the authors' CIFAR-100 configuration
    (cls_KD, `res34_distill_res18_cifar.py`).

    Attributes:
        gamma: weight of the other classes' part.
        temperature: divides the logits of the other classes.
        label_weight: of the cross entropy with the labels.
    """

    gamma: float = 3.5
    temperature: float = 3.0
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self, self.temperature)

    @classmethod
    def imagenet(cls) -> "NKD":
        """The paper's settings for ImageNet."""
        return cls(gamma=1.5, temperature=1.0)

    def __call__(
        self, student: Outputs, teacher: Outputs, labels: Int[Array, " B"], epoch: float | Int[Array, ""]
    ) -> Float[Array, ""]:
        """See `Distillation`; the epoch plays no part."""
        del epoch
        own, other = _pair(student.logits, teacher.logits)
        target = -jnp.mean(jnp.exp(_picked(_log_softmax(other), labels)) * _picked(_log_softmax(own), labels))
        theirs = jax.nn.softmax(_others(other, labels) / self.temperature)
        ours = _log_softmax(_others(own, labels) / self.temperature)
        rest = -self.gamma * self.temperature**2 * jnp.mean(jnp.sum(theirs * ours, axis=-1))
        return self.label_weight * cross_entropy(own, labels) + target + rest


DISTILLATIONS: dict[str, Callable[..., Distillation]] = {"kd": KD, "dkd": DKD, "rkd": RKD, "nkd": NKD}
"""Name -> class; its keyword arguments are the settings."""


def cross_entropy(logits: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, ""]:
    """Mean over the batch of the labels' negative log probability, in float32."""
    return -jnp.mean(_picked(_log_softmax(logits.astype(jnp.float32)), labels))


def _check(settings: "KD | DKD | NKD", temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"{type(settings).__name__}'s temperature must be above 0, not {temperature}.")


def _pair(student: Float[Array, "B _"], teacher: Float[Array, "B _"]) -> tuple[Array, Array]:
    return student.astype(jnp.float32), jax.lax.stop_gradient(teacher.astype(jnp.float32))


def _log_softmax(logits: Float[Array, "B C"]) -> Float[Array, "B C"]:
    return jax.nn.log_softmax(logits, axis=-1)


def _picked(values: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, " B"]:
    return jnp.take_along_axis(values, labels[:, None], axis=-1)[:, 0]


def _others(values: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, "B C-1"]:
    """The columns of all classes but the label's, in their order."""
    column = jnp.arange(values.shape[-1] - 1, dtype=labels.dtype)[None, :]
    return jnp.take_along_axis(values, column + (column >= labels[:, None]).astype(labels.dtype), axis=-1)


def _target_or_not(logits: Float[Array, "B C"], labels: Int[Array, " B"]) -> Float[Array, "B 2"]:
    """Log probabilities of the label's class and of all others together."""
    scores = _log_softmax(logits)
    return jnp.stack([_picked(scores, labels), jax.nn.logsumexp(_others(scores, labels), axis=-1)], axis=-1)


def _divergence(teacher: Float[Array, "B C"], student: Float[Array, "B C"]) -> Float[Array, ""]:
    """Mean over the batch of the Kullback-Leibler divergence of log probabilities."""
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))


def _differences(features: Float[Array, "B D"]) -> Float[Array, "B B D"]:
    """Row i holds the vectors from features i to all."""
    return features[None, :] - features[:, None]


def _distances(differences: Float[Array, "B B D"]) -> Float[Array, "B B"]:
    """Distances of all pairs, divided by the mean over pairs of different rows."""
    rows = len(differences)
    squared = jnp.maximum(jnp.sum(jnp.square(differences), axis=-1), RKD_EPSILON)  # a root has no slope at 0
    distance = jnp.where(jnp.eye(rows, dtype=bool), 0.0, jnp.sqrt(squared))
    return distance / (jnp.sum(distance) / (rows * (rows - 1)))


def _cosines(differences: Float[Array, "B B D"]) -> Float[Array, "B B B"]:
    """At [i, j, k] the cosine of the angle at i between j and k; 0 where j or k is i."""
    squared = jnp.sum(jnp.square(differences), axis=-1, keepdims=True)
    unit = jnp.where(squared > RKD_EPSILON, differences / jnp.sqrt(jnp.maximum(squared, RKD_EPSILON)), 0.0)
    return jnp.einsum("ijd,ikd->ijk", unit, unit)


def _huber(student: Float[Array, "..."], teacher: Float[Array, "..."]) -> Float[Array, ""]:
    """Huber loss with its threshold at 1, mean over all entries."""
    error = jnp.abs(student - teacher)
    return jnp.mean(jnp.where(error <= 1.0, 0.5 * jnp.square(error), error - 0.5))

"""Settings of a task: the model, its initial weights, its batches and its optimiser."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from models.bert.config import BertConfig
from models.errors import UserError
from models.vision.siglip import SiglipConfig

TaskName = Literal["reviews", "questions", "vqa", "retrieval"]
ENCODERS: dict[str, BertConfig] = {
    "bert_base": BertConfig.bert_base_uncased(),
    "distilbert_base": BertConfig.distilbert_base_uncased(),
    "bert_tiny": BertConfig.tiny(vocab_size=512, hidden_size=32, intermediate_size=64, max_position_embeddings=96),
    "distilbert_tiny": BertConfig.tiny(
        "distilbert", vocab_size=512, hidden_size=32, intermediate_size=64, max_position_embeddings=96
    ),
}
"""Text encoders by name."""
TOWERS: dict[str, SiglipConfig] = {
    "siglip_base": SiglipConfig(768, 3072, 12, 12, 224, 16),
    "siglip_tiny": SiglipConfig.tiny(hidden_size=32, num_hidden_layers=2, image_size=24, patch_size=6),
}
"""Vision transformers by name."""
TINY = {"bert_base": "bert_tiny", "distilbert_base": "distilbert_tiny", "siglip_base": "siglip_tiny"}
"""Stand-ins for models in smoke runs."""


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with a linear warm-up and a linear fall to 0, as BERT is fine-tuned (arXiv 1810.04805, appendix A.3).

    Attributes:
        rate: largest learning rate.
        decay: weight decay of all parameters but biases and norms.
        warmup: share of the steps in which the rate grows.
        clip: largest norm of the gradient.
    """

    rate: float = 3e-5
    decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise UserError(f"warmup is a share of the steps, from 0 to below 1, not {self.warmup}.")

    def make(self, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many steps."""
        ramp = int(self.warmup * steps)
        rate = optax.join_schedules(
            [
                optax.linear_schedule(self.rate / max(ramp, 1), self.rate, max(ramp - 1, 1)),
                optax.linear_schedule(self.rate, 0.0, max(steps - ramp, 1)),
            ],
            [ramp],
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.adamw(rate, weight_decay=self.decay, mask=_decayed)
        )


def _decayed(params: Any) -> Any:
    def kernel(path: Any, leaf: Any) -> bool:
        del leaf
        return not any(word in jax.tree_util.keystr(path) for word in ("bias", "norm"))

    return jax.tree_util.tree_map_with_path(kernel, params)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task, and the model that is trained for it.

    Attributes:
        task: "reviews" (imdb_reviews: classes), "questions" (SQuAD v2.0: spans), "vqa" (VQA v2: the most frequent
            answers as classes) or "retrieval" (coco_captions: pictures and captions in one space).
        text: one of ENCODERS, where no weights are given.
        weights: folder of a Hugging Face checkpoint of BERT or DistilBERT to start from, with its tokenizer. Without
            one the weights are random, and the vocabulary is made of the training texts.
        vision: one of TOWERS; for "vqa" and "retrieval".
        vision_weights: folder of a Hugging Face checkpoint of SigLIP of that size, for its vision tower.
        length: tokens of a row.
        stride: tokens that windows of a long context share; for "questions".
        answers: classes; for "vqa".
        width: of the space that picture and text meet in; for "vqa" and "retrieval".
        batch: rows of a step.
        optimizer: of the model.
    """

    task: TaskName
    text: str = "bert_base"
    weights: str | None = None
    vision: str = "siglip_base"
    vision_weights: str | None = None
    length: int = 256
    stride: int = 128
    answers: int = 3129
    width: int = 512
    batch: int = 32
    optimizer: AdamW = AdamW()

    def __post_init__(self) -> None:
        for kind, name, known in (("text encoder", self.text, ENCODERS), ("vision tower", self.vision, TOWERS)):
            if name not in known:
                raise UserError(f"There is no {kind} {name!r}; take one of {', '.join(known)}.")
        for name in ("batch", "answers", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")

    @property
    def pictured(self) -> bool:
        """Whether the task has pictures."""
        return self.task in ("vqa", "retrieval")

    def smoke_version(self) -> "TaskSpec":
        """The task with a tiny model from random weights, short rows and few classes."""
        return dataclasses.replace(
            self,
            text=TINY.get(self.text, self.text),
            vision=TINY.get(self.vision, self.vision),
            weights=None,
            vision_weights=None,
            length=72 if self.task == "questions" else 32,
            stride=16,
            answers=16,
            width=32,
            batch=8,
            optimizer=AdamW(5e-3),
        )

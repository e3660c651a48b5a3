"""Tasks of text alone, asked of SmolLM2 as it was published."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from eval.held_back import Padding
from eval.tasks.interface import Question, Task
from models.decoder import DecoderConfig
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.smolav.chat import SmolLM2Chat, load_smollm2_chat

MOST = 1000  # examples; number i is always the same
LENGTHS = (512, 1024, 2048, 4096)
"""Tokens of a prompt, in turn: rows of the results."""


@dataclasses.dataclass(frozen=True)
class TextTask(Task):
    """A task whose texts are made up; an example's id is its number."""

    model: SmolLM2Chat

    default_model: ClassVar[str] = "smollm2"
    padding: ClassVar[Padding] = Padding(prefix=LENGTHS, question=32)
    policy_options: ClassVar[dict[str, Any]] = {"window_size": 16, "evict_every": 0}

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """SmolLM2.

        Raises:
            UserError: if it is another model or cannot be loaded, or the user names data.
        """
        if data is not None:
            raise UserError(f"This task makes up its texts and reads no data from {data}; leave out --data.")
        return cls(load_text_model(model))

    @classmethod
    def kv_heads(cls, model: str) -> int:
        """Those of SmolLM2."""
        return DecoderConfig.smollm2_135m().num_key_value_heads

    @property
    def ids(self) -> Sequence[str]:
        """Numbers of examples."""
        return [str(number) for number in range(MOST)]

    def prompt(self, asked: Sequence[Question]) -> EmbeddedPrompt:
        """The question and the answer's first words, which are the label `begins`: small models then keep to them."""
        begun = self.model.embed_text(self.model.tokenizer.encode(str(asked[-1].labels["begins"])).ids)
        return super().prompt(asked).then(begun)

    def score(self, answer: str, question: Question) -> float:
        """Whether the answer begins with the right number."""
        return float(answer.split(".")[0].strip() == question.references[0])

    def context(self, text: str) -> EmbeddedPrompt:
        """A text as the beginning of the user's turn."""
        return self.model.embed_text([*self.model.chat.before, *self.model.tokenizer.encode(text).ids])

    def tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.model.tokenizer.encode(text).ids)


def load_text_model(model: str) -> SmolLM2Chat:
    """SmolLM2 by its name.

    Raises:
        UserError: if it is another model or cannot be loaded.
    """
    if model != "smollm2":
        raise UserError(f"This task asks smollm2, a language model without eyes and ears, not {model}.")
    return load_smollm2_chat()


def generator(task: str, id: str) -> np.random.Generator:
    """The randomness of an example, by the task's name and the example's number."""
    return np.random.default_rng([*task.encode(), int(id)])

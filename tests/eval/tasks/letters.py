"""A task of text alone for a tiny random decoder, whose tokens are letters."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from acckv_jax import Modality
from acckv_jax.testing import tiny_decoder
from eval.held_back import Padding
from eval.tasks.interface import Example, Question, Task
from models.errors import UserError
from models.interface import EmbeddedPrompt

BROKEN = "12"


class LetterModel:
    """The least that a task asks of a model: tokens 1 to 26 are letters, the others spaces, and 0 ends an answer."""

    family = "letters"
    max_context = 256
    stop_token_ids = (0,)

    def __init__(self) -> None:
        self.decoder, params, *_ = tiny_decoder()
        scales = {"embed": 4, "q": 16, "o": 4}  # sharp attention: else a letter is followed by itself
        self.params = params | {name: scale * params[name] for name, scale in scales.items()}

    def embed_text(self, ids: Sequence[int]) -> EmbeddedPrompt:
        return EmbeddedPrompt.of(np.array(ids, np.int32), np.full(len(ids), Modality.TEXT))

    def encode_question(self, text: str) -> EmbeddedPrompt:
        return self.embed_text([ord(c) - 96 if c.isalpha() else 31 for c in text.lower()])

    def encode_next_question(self, answer: str, text: str) -> EmbeddedPrompt:
        return self.encode_question(f"{answer} {text}")

    def detokenize(self, tokens: list[int]) -> str:
        return "".join(chr(96 + token) if 0 < token < 27 else " " for token in tokens)


@dataclasses.dataclass(frozen=True)
class Letters(Task):
    """Two conversations of two turns about each of 20 random texts, of which one cannot be read.

    Attributes:
        read: ids of the examples that were read.
    """

    model: LetterModel = dataclasses.field(default_factory=LetterModel)
    read: list[str] = dataclasses.field(default_factory=list)

    metric: ClassVar[str] = "word_error_rate"
    max_new_tokens: ClassVar[int] = 4
    padding: ClassVar[Padding] = Padding(prefix=(64,), question=16, rows=2)
    policy_options: ClassVar[dict[str, Any]] = {"window_size": 4, "evict_every": 0}

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        return cls()

    @property
    def ids(self) -> Sequence[str]:
        return [str(number) for number in range(20)]

    def example(self, id: str) -> Example:
        self.read.append(id)
        if id == BROKEN:
            raise UserError("The text is broken.")
        rng = np.random.default_rng(int(id))
        text = "".join(rng.choice(list("abcdefgh "), int(rng.integers(40, 64))))
        first, second = Question("what is it", ("a b",), "what"), Question("where is it", ("here", "there"), "where")
        return Example(self.model.encode_question(text), ((first, second), (second, first)))

"""Turns of a conversation as tokens, in ChatML as Qwen2's models speak it."""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from models.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class ChatML:
    """Encodes the pieces of turns.

    Attributes:
        tokenizer: of the checkpoint; what it encodes is read as plain characters from now on.
        vocab_size: tokens that the decoder knows.

    Raises:
        UserError: if the tokenizer has no ChatML marks, or more tokens than the decoder.
    """

    tokenizer: Tokenizer
    vocab_size: int

    def __post_init__(self) -> None:
        for name in ("im_start", "im_end", "endoftext"):
            self.mark(name)
        if (size := self.tokenizer.get_vocab_size()) > self.vocab_size:
            raise UserError(
                f"The tokenizer has {size} tokens but the model only {self.vocab_size}; they belong to different "
                "checkpoints."
            )
        self.tokenizer.encode_special_tokens = True  # what a user types is never a special token

    @property
    def stop_token_ids(self) -> tuple[int, int]:
        """The tokens that end an answer."""
        return self.mark("im_end"), self.mark("endoftext")

    def mark(self, name: str) -> int:
        """Id of the special token of a name.

        Raises:
            UserError: if there is none.
        """
        if (number := self.tokenizer.token_to_id(f"<|{name}|>")) is None:
            raise UserError(f"The tokenizer has no <|{name}|>; take the tokenizer that came with the checkpoint.")
        return number

    def encode(self, text: str) -> list[int]:
        """Text without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def start(self, role: str) -> list[int]:
        """The start of a turn."""
        return [self.mark("im_start"), *self.encode(f"{role}\n")]

    def close(self) -> list[int]:
        """The end of a turn."""
        return [self.mark("im_end"), *self.encode("\n")]

    def turn(self, role: str, text: str) -> list[int]:
        """A whole turn."""
        return [self.mark("im_start"), *self.encode(f"{role}\n{text}"), *self.close()]

    def question(self, text: str, *, gap: str = "") -> list[int]:
        """A question in the user's turn, the turn's end, and the start of the answer.

        Args:
            text: the question.
            gap: what stands between it and the media.

        Raises:
            UserError: if the question is empty.
        """
        if not text.strip():
            raise UserError("The question is empty; ask something about the clip.")
        return [*self.encode(gap + text.strip()), *self.close(), *self.start("assistant")]

    def next_question(self, answer: str | Sequence[int], text: str) -> list[int]:
        """A further question: the rest of the answer, its end, and a new turn of the user.

        Args:
            answer: the answer as text; or its last tokens, of which a stop token is left out.
            text: the question.

        Raises:
            UserError: if the question is empty.
        """
        if isinstance(answer, str):
            rest = self.encode(answer)
        else:
            rest = [token for token in answer if token not in self.stop_token_ids]
        return [*rest, *self.close(), *self.start("user"), *self.question(text)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

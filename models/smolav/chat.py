"""SmolLM2 as it is asked: turns of a conversation as tokens, with or without media before them."""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from models.decoder import Decoder
from models.errors import UserError
from models.interface import EmbeddedPrompt
from models.layers.init import FastRngs, abstract_params
from models.over_decoder import OverDecoder
from models.placement import place
from models.smolav.preprocess import Chat
from models.smolav.smollm2 import load_smollm2
from models.text.tokenizers import load_smollm2_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class SmolLM2Chat(OverDecoder):
    """SmolLM2, asked by text; `SmolAVModel` adds what it sees and hears.

    Attributes:
        tokenizer: reads all text as plain characters.
        chat: the fixed text around questions.
    """

    tokenizer: Tokenizer
    chat: Chat

    family = "smollm2"

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The token that ends an answer."""
        return (self.chat.end,)

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question, and the start of the answer's turn.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(self._question(text))

    def encode_next_question(self, answer: str | Sequence[int], text: str) -> EmbeddedPrompt:
        """A further question: the rest of an answer (its text, or its last tokens), its end, a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        rest = self.tokenizer.encode(answer).ids if isinstance(answer, str) else answer
        spoken = [token for token in rest if token != self.chat.end]
        return self.embed_text([*spoken, self.chat.end, *self.chat.before, *self._question(text)])

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.tokenizer.decode([token for token in tokens if token != self.chat.end])

    def _question(self, text: str) -> list[int]:
        if not text.strip():
            raise UserError("The question is empty; ask something about the clip.")
        return [*self.tokenizer.encode(text.strip()).ids, *self.chat.after]


def load_smollm2_chat() -> SmolLM2Chat:
    """SmolLM2-135M-Instruct as it was published, for prompts of text alone.

    Raises:
        UserError: if its weights cannot be fetched or read.
    """
    config, params = load_smollm2()
    graph, _ = abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))
    placed = place(params, lambda: Decoder(config, rngs=FastRngs(0)))
    return SmolLM2Chat("smollm2", config, graph, {"decoder": placed}, *chat_tokens())


def chat_tokens() -> tuple[Tokenizer, Chat]:
    """The tokenizer, which reads what a user types never as special tokens, and the text around questions.

    Raises:
        UserError: if the tokenizer cannot be fetched or read.
    """
    tokenizer = load_smollm2_tokenizer()
    chat = Chat.smollm2(lambda text: tokenizer.encode(text).ids)
    tokenizer.encode_special_tokens = True
    return tokenizer, chat

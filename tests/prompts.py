"""Whole prompts: their tokens, and their embeddings on the host."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from models.batching import padded
from models.interface import EmbeddedPrompt
from models.smolav.config import Layout, SmolAVConfig
from models.smolav.preprocess import Chat, EncodedMedia, Tokens, concatenate, media_tokens, text_tokens


def prompt_tokens(
    media: EncodedMedia, question: Sequence[int], chat: Chat, layout: Layout, config: SmolAVConfig
) -> Tokens:
    """A prompt of SmolAV: turn start, media, question, answer's turn."""
    body = media_tokens(len(media.video), len(media.audio), layout, config)
    return concatenate([text_tokens(chat.before), body, text_tokens([*question, *chat.after])])


def embeddings(prompt: EmbeddedPrompt) -> Float[np.ndarray, "T D"]:
    """The inputs of a prompt, or a piece of one."""
    return np.asarray(padded([prompt], len(prompt)).inputs)[0]

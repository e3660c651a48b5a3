"""A whole prompt as `models.smolav.model` puts it together from its two chunks."""

from collections.abc import Sequence

from models.smolav.config import Layout, SmolAVConfig
from models.smolav.preprocess import Chat, EncodedMedia, Tokens, concatenate, media_tokens, text_tokens


def prompt_tokens(
    media: EncodedMedia, question: Sequence[int], chat: Chat, layout: Layout, config: SmolAVConfig
) -> Tokens:
    """Turn start, media, question, answer's turn."""
    body = media_tokens(len(media.video), len(media.audio), layout, config)
    return concatenate([text_tokens(chat.before), body, text_tokens([*question, *chat.after])])

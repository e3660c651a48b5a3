"""Conversations with VideoLLaMA2.1 as tokens; the media stand in place of ``<video>`` in the user's turn."""

from models.text.chatml import ChatML

SYSTEM = "You are a helpful assistant."
"""Qwen2's chat template puts this first where a conversation has no system turn, as upstream's have none."""


def before_media(chat: ChatML) -> list[int]:
    """The system's turn and the start of the user's."""
    return [*chat.turn("system", SYSTEM), *chat.start("user")]


def first_question(chat: ChatML, text: str) -> list[int]:
    """A question right after the media, and the start of the answer.

    Raises:
        UserError: if the question is empty.
    """
    return chat.question(text, gap="\n")

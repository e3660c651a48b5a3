"""Conversations with Qwen2.5-Omni: turns of a system, a user with media, and an assistant."""

import dataclasses
from collections.abc import Sequence

from models.errors import UserError
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, Tokens, VideoItem, expand
from models.text.chatml import ChatML

SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
"""The system prompt that the model was trained with."""

LAYOUTS = ("interleaved", "blocks")

Item = AudioItem | ImageItem | VideoItem


def clip_items(visual: ImageItem | VideoItem | None, audio: AudioItem | None, layout: str) -> list[Item]:
    """The media of one clip.

    Args:
        visual: its pictures, without `audio`; or its only picture.
        audio: its sound.
        layout: "interleaved" (audio in video, in chunks of two seconds) or "blocks" (the video, then the sound). A clip
            of pictures alone, of sound alone, or of one picture and sound, is the same in both.

    Raises:
        UserError: on an unknown layout, or if there is neither video nor audio.
    """
    if layout not in LAYOUTS:
        raise UserError(f"Unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if visual is None and audio is None:
        raise UserError("The clip has neither pictures nor sound of at least 30 ms; choose another one.")
    if isinstance(visual, VideoItem) and audio is not None and layout == "interleaved":
        return [dataclasses.replace(visual, audio=audio)]
    return [item for item in (visual, audio) if item is not None]


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """A conversation as tokens, in the pieces that a prompt is read in: prefix, question, next question.

    Attributes:
        chatml: turns.
        config: of the checkpoint.
        system: the system prompt.
    """

    chatml: ChatML
    config: ThinkerConfig
    system: str = SYSTEM

    def prefix(self, media: Sequence[Item]) -> Tokens:
        """The system's turn, and the user's turn as far as its media go."""
        turns = self.chatml
        return expand([turns.turn("system", self.system), turns.start("user"), *media], self.config)

    def question(self, text: str) -> Tokens:
        """The rest of the user's turn, and the start of the answer.

        Raises:
            UserError: if the question is empty.
        """
        return expand([self.chatml.question(text)], self.config)

    def next_question(self, answer: str | Sequence[int], text: str) -> Tokens:
        """A further question: the rest of the answer (see `ChatML.next_question`), its end, a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        return expand([self.chatml.next_question(answer, text)], self.config)

"""Conversations with Qwen2.5-Omni (ChatML): turns of a system, a user with media, and an assistant."""

import dataclasses
from collections.abc import Sequence

from tokenizers import Tokenizer

from models.errors import UserError
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, Part, Tokens, VideoItem, expand, join

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
        raise UserError("The clip has neither pictures nor sound; choose another one.")
    if isinstance(visual, VideoItem) and audio is not None and layout == "interleaved":
        return [dataclasses.replace(visual, audio=audio)]
    return [item for item in (visual, audio) if item is not None]


@dataclasses.dataclass(frozen=True, eq=False)
class Chat:
    """Turns as tokens, in the pieces that a prompt is read in: prefix, question, next question.

    Attributes:
        tokenizer: of the checkpoint; what it encodes is read as plain characters from now on.
        config: of the checkpoint.
        system: the system prompt.

    Raises:
        UserError: if the tokenizer has no ChatML marks, or more tokens than the model.
    """

    tokenizer: Tokenizer
    config: ThinkerConfig
    system: str = SYSTEM

    def __post_init__(self) -> None:
        for name in ("im_start", "im_end", "endoftext"):
            self._mark(name)
        size = self.tokenizer.get_vocab_size()
        if size > self.config.text.vocab_size:
            raise UserError(
                f"The tokenizer has {size} tokens but the model only {self.config.text.vocab_size}; they belong to "
                "different checkpoints."
            )
        self.tokenizer.encode_special_tokens = True  # what a user types is never a special token

    @property
    def stop(self) -> tuple[int, int]:
        """The tokens that end an answer."""
        return self._mark("im_end"), self._mark("endoftext")

    def prefix(self, media: Sequence[Item]) -> Tokens:
        """The system's turn, and the user's turn as far as its media go."""
        return self._expand(self._turn("system", self.system), self._start("user"), *media)

    def question(self, text: str) -> Tokens:
        """The rest of the user's turn, and the start of the answer.

        Raises:
            UserError: if the question is empty.
        """
        if not text.strip():
            raise UserError("The question is empty; ask something about the clip.")
        return self._expand(self._encode(text.strip()), self._close(), self._start("assistant"))

    def next_question(self, answer: str, text: str) -> Tokens:
        """A further question: the answer so far, its end, and a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        return join([self._expand(self._encode(answer), self._close(), self._start("user")), self.question(text)])

    def text(self, tokens: Sequence[int]) -> str:
        """Generated tokens as text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def _mark(self, name: str) -> int:
        if (number := self.tokenizer.token_to_id(f"<|{name}|>")) is None:
            raise UserError(f"The tokenizer has no <|{name}|>; take the tokenizer of a Qwen2.5-Omni checkpoint.")
        return number

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _start(self, role: str) -> list[int]:
        return [self._mark("im_start"), *self._encode(f"{role}\n")]

    def _close(self) -> list[int]:
        return [self._mark("im_end"), *self._encode("\n")]

    def _turn(self, role: str, text: str) -> list[int]:
        return [self._mark("im_start"), *self._encode(f"{role}\n{text}"), *self._close()]

    def _expand(self, *parts: Part) -> Tokens:
        return expand(parts, self.config)

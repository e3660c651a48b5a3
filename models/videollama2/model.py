"""VideoLLaMA2.1-AV, ready to answer questions."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from acckv_jax import Modality
from models.errors import UserError
from models.hf.config import reading
from models.hf.decoder import decoder_tensors
from models.interface import EmbeddedPrompt, media_sequence
from models.layers.init import Params
from models.media.clip import Media, Progress, Span
from models.over_decoder import OverDecoder
from models.text.chatml import ChatML
from models.text.tokenizers import load_tokenizer
from models.videollama2.chat import before_media, first_question
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.frames import load_clip
from models.videollama2.params import open_videollama2
from models.videollama2.preprocess import clip_banks, frame_numbers, pixels

LAYOUTS = ("blocks",)


@functools.partial(jax.jit, static_argnums=0)
def _see(graph: nnx.GraphDef, params: Params, frames: Float[Array, "F Y X C"]) -> Float[Array, "T D"]:
    return nnx.merge(graph, params).see(frames)


@functools.partial(jax.jit, static_argnums=0)
def _hear(graph: nnx.GraphDef, params: Params, banks: Float[Array, "F M"]) -> Float[Array, "T D"]:
    return nnx.merge(graph, params).hear(banks)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoLLaMA2Model(OverDecoder):
    """A loaded VideoLLaMA2.1-AV: what `models.interface.AVModel` describes."""

    config: VideoLLaMA2Config
    chat: ChatML

    family = "videollama2"
    layouts = LAYOUTS

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads a checkpoint folder: in float32 on CPUs, else in the checkpoint's own type.

        Raises:
            UserError: if it is not complete, or damaged.
        """
        with reading(folder) as section:
            config, source = open_videollama2(folder, section)
        chat = ChatML(load_tokenizer(folder), config.decoder.vocab_size)
        decoder_alone = dataclasses.replace(source, tensors=decoder_tensors(config.decoder))
        graph, params = source.load(decoder_alone.run_dtype())  # the audio tower's file may be of another type
        return cls(str(folder), config.decoder, graph, params, config, chat)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.chat.stop_token_ids

    def load_media(self, clip: Path, progress: Progress | None = None, span: Span | None = None) -> Media:
        """Decodes a clip, or a part of it: its sound, and num_frames frames, spread evenly and made squares."""
        return load_clip(clip, self.config.vision.image_size, self.config.num_frames, progress, span)

    def encode_media(self, media: Media | Sequence[Media], layout: str) -> EmbeddedPrompt:
        """System turn, all video tokens, all audio tokens. A clip without sound, or without pictures, has fewer.

        Raises:
            UserError: on an unknown layout, on several clips, or if there are neither frames nor sound.
        """
        if layout not in LAYOUTS:
            raise UserError(f"VideoLLaMA2.1 has no layout {layout!r}; it reads its media as {' or '.join(LAYOUTS)}.")
        clip, *more = media_sequence(media)
        if more:
            raise UserError(f"VideoLLaMA2.1 reads one clip, not {1 + len(more)}; join them to one file, or ask apart.")
        if clip.frames is None and clip.audio is None:
            raise UserError("The clip has neither pictures nor sound; choose another one.")
        prompt = self.embed_text(before_media(self.chat))
        if clip.frames is not None:
            # One picture is shown as a video in which nothing moves.
            chosen = clip.frames[frame_numbers(len(clip.frames), self.config.num_frames)]
            prompt = prompt.then(_media(_see(self.graph, self.all_params, pixels(chosen)), Modality.VIDEO))
        if clip.audio is not None:
            banks = clip_banks(clip.audio, with_frames=clip.frames is not None)
            prompt = prompt.then(_media(_hear(self.graph, self.all_params, banks), Modality.AUDIO))
        return prompt

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The question, and the start of the answer's turn.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(first_question(self.chat, text))

    def encode_next_question(self, answer: str | Sequence[int], text: str) -> EmbeddedPrompt:
        """A further question: the rest of an answer (its text, or its last tokens), its end, a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(self.chat.next_question(answer, text))

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.chat.detokenize(tokens).strip()


def _media(embedded: Float[Array, "T D"], modality: Modality) -> EmbeddedPrompt:
    return EmbeddedPrompt.of(embedded, np.full(len(embedded), modality, np.int32))

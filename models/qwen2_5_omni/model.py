"""Qwen2.5-Omni's thinker, ready to answer questions."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from models.hf.config import reading
from models.interface import EmbeddedPrompt, media_sequence
from models.media.clip import Media, Progress, Span
from models.over_decoder import OverDecoder
from models.qwen2_5_omni import images
from models.qwen2_5_omni.chat import LAYOUTS, Chat, clip_items
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.encoders import Features, encode_frames, encode_sound, place_features
from models.qwen2_5_omni.frames import ClipFrames
from models.qwen2_5_omni.params import open_thinker
from models.qwen2_5_omni.positions import audio_tokens
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, VideoItem
from models.qwen2_5_omni.sound import mel_features
from models.text.chatml import ChatML
from models.text.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class QwenOmniModel(OverDecoder):
    """A loaded thinker: what `models.interface.AVModel` describes."""

    config: ThinkerConfig
    chat: Chat

    family = "qwen2_5_omni"
    layouts = LAYOUTS

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads a checkpoint folder: in float32 on CPUs, else in the checkpoint's own type.

        Raises:
            UserError: if it is not complete, or damaged.
        """
        with reading(folder) as section:
            config, source = open_thinker(folder, section)
        chat = Chat(ChatML(load_tokenizer(folder), config.text.vocab_size), config)
        graph, params = source.load(source.run_dtype())
        return cls(str(folder), config.text, graph, params, config, chat)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.chat.chatml.stop_token_ids

    def load_media(self, clip: Path, progress: Progress | None = None, span: Span | None = None) -> Media:
        """Decodes a clip, or a part of it: two frames per second, of a size that depends on how many there are."""
        return ClipFrames(self.config.vision, self.max_context).load_clip(clip, progress, span)

    def encode_media(self, media: Media | Sequence[Media], layout: str) -> EmbeddedPrompt:
        """The system's turn, and the user's turn as far as its media go: one clip after the other.

        Raises:
            UserError: on an unknown layout, if there are neither frames nor enough sound for one token, or too much.
        """
        items, seen, heard = [], [], []
        for clip in media_sequence(media):
            visual, pictures = self._encode_pictures(clip)
            audio, sounds = self._encode_sound(clip)
            items += clip_items(visual, audio, layout)
            seen += pictures
            heard += sounds
        tokens = self.chat.prefix(items)
        return place_features(self.embed_text(tokens.text_ids), tokens, seen, heard)

    def _encode_pictures(self, clip: Media) -> tuple[ImageItem | VideoItem | None, list[Features]]:
        if clip.frames is None:
            return None, []
        grid = images.patch_grid(clip.frames.shape, self.config.vision)
        one = len(clip.frames) == 1
        item = ImageItem(grid) if one else VideoItem(grid, self.config.vision.temporal_patch_size / clip.fps)
        return item, [encode_frames(self.graph, self.all_params, self.config, clip.frames)]

    def _encode_sound(self, clip: Media) -> tuple[AudioItem | None, list[Features]]:
        if clip.audio is None or not len(clip.audio):
            return None, []
        mel = mel_features(clip.audio, self.config.audio.num_mel_bins)
        if not audio_tokens(mel.shape[1]):
            return None, []
        return AudioItem(mel.shape[1]), [encode_sound(self.graph, self.all_params, self.config, mel)]

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The rest of the user's turn, and the start of the answer.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(self.chat.question(text).ids)

    def encode_next_question(self, answer: str | Sequence[int], text: str) -> EmbeddedPrompt:
        """A further question: the rest of an answer (its text, or its last tokens), its end, a new turn of the user.

        Raises:
            UserError: if the question is empty.
        """
        return self.embed_text(self.chat.next_question(answer, text).ids)

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.chat.chatml.detokenize(tokens)

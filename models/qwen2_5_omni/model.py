"""Qwen2.5-Omni's thinker, ready to answer questions."""

import dataclasses
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt8

from models.hf.config import reading
from models.interface import EmbeddedPrompt
from models.media.clip import Media, Progress, Sampling, read_clip
from models.media.resize import resize_bicubic
from models.over_decoder import OverDecoder
from models.qwen2_5_omni import images
from models.qwen2_5_omni.chat import LAYOUTS, Chat, clip_items
from models.qwen2_5_omni.config import ThinkerConfig, VisionConfig
from models.qwen2_5_omni.encoders import embed_prompt, encode_frames, encode_sound
from models.qwen2_5_omni.params import open_thinker
from models.qwen2_5_omni.positions import audio_tokens
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, Tokens, VideoItem
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

    def load_media(self, clip: Path, progress: Progress | None = None) -> Media:
        """Decodes a clip: two frames per second, of a size that depends on how many there are."""
        frames = ClipFrames(self.config.vision)
        media = read_clip(clip, Sampling(images.FPS, frames.choose, resize=frames.resize), progress=progress)
        return dataclasses.replace(media, fps=frames.fps)

    def encode_media(self, media: Media, layout: str) -> EmbeddedPrompt:
        """The system's turn, and the user's turn as far as its media go.

        Raises:
            UserError: on an unknown layout, if there are neither frames nor enough sound for one token, or too much.
        """
        where = self.graph, self.all_params, self.config
        visual = audio = None
        seen, heard = [], []
        if media.frames is not None:
            grid = images.patch_grid(media.frames.shape, self.config.vision)
            if len(media.frames) == 1:
                visual = ImageItem(grid)
            else:
                visual = VideoItem(grid, self.config.vision.temporal_patch_size / media.fps)
            seen.append(encode_frames(*where, media.frames))
        if media.audio is not None and len(media.audio):
            mel = mel_features(media.audio, self.config.audio.num_mel_bins)
            if audio_tokens(mel.shape[1]):
                audio = AudioItem(mel.shape[1])
                heard.append(encode_sound(*where, mel))
        return self._chunk(self.chat.prefix(clip_items(visual, audio, layout)), seen, heard)

    def encode_question(self, text: str) -> EmbeddedPrompt:
        """The rest of the user's turn, and the start of the answer.

        Raises:
            UserError: if the question is empty.
        """
        return self._text(self.chat.question(text))

    def encode_next_question(self, answer: str, text: str) -> EmbeddedPrompt:
        """A further question after an answer: the answer, its end, and a new turn of the user."""
        return self._text(self.chat.next_question(answer, text))

    def detokenize(self, tokens: list[int]) -> str:
        """Generated tokens as text."""
        return self.chat.chatml.detokenize(tokens)

    def _chunk(self, tokens: Tokens, seen: list[np.ndarray], heard: list[np.ndarray]) -> EmbeddedPrompt:
        return embed_prompt(self.graph, self.all_params, tokens, seen, heard)

    def _text(self, tokens: Tokens) -> EmbeddedPrompt:
        chunk = self._chunk(tokens, [], [])
        return EmbeddedPrompt(
            chunk.inputs, chunk.modality
        )  # its positions are those of the prompt that it is appended to


class ClipFrames:
    """Chooses the frames of one clip, and their size; for one reading of it.

    Attributes:
        fps: frames per second that their times are reckoned with: the nominal rate, as the model was trained (a clip of
            5.3 s has 10 frames at 2 a second), unless the clip is too short or too long for it, or has fewer frames.
    """

    def __init__(self, config: VisionConfig) -> None:
        self.fps = images.FPS
        self._config = config
        self._pixels = images.PICTURE_PIXELS
        self._size: tuple[int, int] | None = None

    def choose(self, total: int, rate: float) -> list[int]:
        """Numbers of the frames that are read, of `total` frames at `rate` per second."""
        number = images.number_of_frames(total, rate)
        if number > 1:
            self._pixels = images.frame_pixels(number)
        if rate < images.FPS or not images.FRAMES[0] <= total / rate * images.FPS < images.FRAMES[1] + 2:
            self.fps = number * rate / total
        return images.spread_frames(total, number).tolist()

    def resize(self, pixels: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A frame in the size that the first one was given."""
        unit = self._config.patch_size * self._config.spatial_merge_size
        self._size = self._size or images.fitted_size(pixels.shape[0], pixels.shape[1], self._pixels, unit)
        return resize_bicubic(pixels, *self._size)

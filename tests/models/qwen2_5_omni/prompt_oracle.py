"""What transformers makes of a batch of prompts: the processor's token ids, the model's positions."""

import dataclasses
import types
from collections.abc import Sequence

import numpy as np
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.positions import audio_tokens
from models.qwen2_5_omni.prompt import AudioItem, ImageItem, Part, VideoItem

Prompt = Sequence[Part]


@dataclasses.dataclass(frozen=True)
class Reference:
    """One prompt as transformers has it: ids [T] and positions [3, T]."""

    ids: np.ndarray
    positions: np.ndarray


class Oracle:
    """A thinker without weights, and a processor without its image processors (they need torchvision)."""

    def __init__(self, config: ThinkerConfig) -> None:
        self.config = config
        ids = {
            name: getattr(config, name)
            for name in (
                "audio_token_index",
                "image_token_index",
                "video_token_index",
                "audio_start_token_id",
                "audio_end_token_id",
                "position_id_per_seconds",
                "seconds_per_chunk",
            )
        }
        text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
        vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "spatial_merge_size": config.vision.spatial_merge_size}
        audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        thinker = Qwen2_5OmniThinkerConfig(
            text_config=text | heads | {"rope_parameters": rope}, vision_config=vision, audio_config=audio, **ids
        )
        thinker.vision_start_token_id = config.vision_start_token_id
        thinker.vision_end_token_id = config.vision_end_token_id
        with torch.device("meta"):
            self.model = Qwen2_5OmniThinkerForConditionalGeneration(thinker).model
        self.processor = Qwen2_5OmniProcessor.__new__(Qwen2_5OmniProcessor)
        sizes = types.SimpleNamespace(merge_size=config.vision.spatial_merge_size)
        self.processor.image_processor = self.processor.video_processor = sizes
        self.processor.image_token = chr(config.image_token_index)
        self.processor.video_token = chr(config.video_token_index)
        self.processor.audio_token = chr(config.audio_token_index)
        self.processor.audio_bos_token = chr(config.audio_start_token_id)
        self.processor.audio_eos_token = chr(config.audio_end_token_id)

    def __call__(self, prompts: Sequence[Prompt], *, pad_left: bool) -> list[Reference]:
        """One batch; either all videos have sound in them, or none has."""
        media = [part for prompt in prompts for part in prompt if not isinstance(part, list)]
        videos = [item for item in media if isinstance(item, VideoItem)]
        images = [item for item in media if isinstance(item, ImageItem)]
        sounds = [item.audio if isinstance(item, VideoItem) else item for item in media]
        sounds = [sound for sound in sounds if isinstance(sound, AudioItem)]
        in_video = any(video.audio for video in videos)
        rows = self._tokens(prompts, images, videos, sounds)
        size = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), size, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, (one, real) in zip(rows, zip(ids, mask, strict=True), strict=True):
            here = slice(size - len(row), None) if pad_left else slice(len(row))
            one[here], real[here] = torch.tensor(row), 1
        positions, _ = self.model.get_rope_index(
            ids,
            torch.tensor([image.grid for image in images]) if images else None,
            torch.tensor([video.grid for video in videos]) if videos else None,
            mask,
            in_video,
            torch.tensor([sound.mel_frames for sound in sounds]) if sounds else None,
            torch.tensor([video.seconds_per_grid for video in videos]) if videos else None,
        )
        return [Reference(np.array(row), positions[:, i, mask[i] == 1].numpy()) for i, row in enumerate(rows)]

    def _tokens(
        self,
        prompts: Sequence[Prompt],
        images: list[ImageItem],
        videos: list[VideoItem],
        sounds: list[AudioItem],
    ) -> list[list[int]]:
        """Every token is a character; the processor replaces one per item by as many as the item has."""
        vision = {
            "video_grid_thw": [np.array(video.grid) for video in videos],
            "video_second_per_grid": [video.seconds_per_grid for video in videos],
        }
        pictures = {"image_grid_thw": [np.array(image.grid) for image in images]}
        heard = {"num_audio_tokens": [audio_tokens(sound.mel_frames) for sound in sounds]}
        inner = {id(video.audio) for video in videos}
        options = {
            "load_audio_from_video": any(video.audio for video in videos),
            "position_id_per_seconds": self.config.position_id_per_seconds,
            "seconds_per_chunk": float(self.config.seconds_per_chunk),
        }
        indices = [next((i for i, sound in enumerate(sounds) if sound is video.audio), None) for video in videos]
        processor = self.processor
        texts, _ = processor.get_text_with_replacements(
            ["".join(self._placeholder(part) for part in prompt) for prompt in prompts],
            [processor.replace_image_token(pictures, i) for i in range(len(images))],
            [processor.replace_video_token(vision, i, heard, indices, **options) for i in range(len(videos))],
            [processor.replace_audio_token(heard, i) for i, sound in enumerate(sounds) if id(sound) not in inner],
        )
        return [[ord(letter) for letter in text] for text in texts]

    def _placeholder(self, part: Part) -> str:
        c = self.config
        marks = {
            AudioItem: (c.audio_start_token_id, c.audio_token_index, c.audio_end_token_id),
            ImageItem: (c.vision_start_token_id, c.image_token_index, c.vision_end_token_id),
            VideoItem: (c.vision_start_token_id, c.video_token_index, c.vision_end_token_id),
        }
        return "".join(chr(token) for token in marks.get(type(part), part))

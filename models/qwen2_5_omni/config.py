"""Sizes and options of Qwen2.5-Omni's thinker; the names are Hugging Face's."""

import dataclasses
from typing import Any, Self

from models.decoder import DecoderConfig
from models.hf.config import Section
from models.hf.decoder import decoder_config


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower: windowed attention in all blocks but some."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    window_size: int = 112
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3

    @classmethod
    def published(cls, out_hidden_size: int) -> Self:
        """The tower of the 3B and 7B models."""
        return cls(32, 1280, 3420, 16, out_hidden_size, (7, 15, 23, 31))

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Three small blocks, for tests."""
        small = cls(3, 32, 48, 2, 64, (1,), window_size=56)
        return dataclasses.replace(small, **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """From `vision_config`; `check` the section afterwards."""
        section.only("hidden_act", "silu")
        if section.has("rope_parameters"):
            section.section("rope_parameters").only("rope_theta", 10000.0)
        names = [field.name for field in dataclasses.fields(cls) if field.name != "fullatt_block_indexes"]
        numbers: dict[str, Any] = {name: section.positive(name) for name in names}
        config = cls(**numbers, fullatt_block_indexes=section.integers("fullatt_block_indexes"))
        unit = config.patch_size * config.spatial_merge_size
        if unit and config.window_size % unit:
            section.problem(f"{section.path('window_size')} must be a multiple of {unit}", None)
        if not set(config.fullatt_block_indexes) <= set(range(config.depth)):
            section.problem(f"{section.path('fullatt_block_indexes')} must be below depth {config.depth}", None)
        return config


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """The audio tower: a Whisper encoder over blocks of 2 * n_window mel frames."""

    d_model: int
    encoder_layers: int
    encoder_attention_heads: int
    encoder_ffn_dim: int
    output_dim: int
    num_mel_bins: int = 128
    n_window: int = 100

    @classmethod
    def published(cls, output_dim: int) -> Self:
        """The tower of the 3B and 7B models."""
        return cls(1280, 32, 20, 5120, output_dim)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Two small layers, for tests."""
        return dataclasses.replace(cls(32, 2, 2, 48, 64), **changes)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """From `audio_config`; `check` the section afterwards."""
        section.only("activation_function", "gelu")
        section.only("scale_embedding", False)
        return cls(**{field.name: section.positive(field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class ThinkerConfig:
    """The whole model.

    Attributes:
        text: the decoder.
        vision: the vision tower.
        audio: the audio tower.
        position_id_per_seconds: rotary positions that a second of video or sound takes.
        seconds_per_chunk: length of the pieces in which a video and its sound alternate.
    """

    text: DecoderConfig
    vision: VisionConfig
    audio: AudioConfig
    audio_token_index: int = 151646
    audio_start_token_id: int = 151647
    audio_end_token_id: int = 151648
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    image_token_index: int = 151655
    video_token_index: int = 151656
    position_id_per_seconds: int = 25
    seconds_per_chunk: int = 2

    @classmethod
    def omni_7b(cls) -> Self:
        """Qwen2.5-Omni-7B."""
        text = DecoderConfig(
            152064, 3584, 28, 28, 4, 128, 18944, 1e6, 1e-6, 32768, True, False, mrope_section=(16, 24, 24)
        )
        return cls(text, VisionConfig.published(3584), AudioConfig.published(3584))

    @classmethod
    def omni_3b(cls) -> Self:
        """Qwen2.5-Omni-3B."""
        text = DecoderConfig(
            151936, 2048, 36, 16, 2, 128, 11008, 1e6, 1e-6, 32768, True, False, mrope_section=(16, 24, 24)
        )
        return cls(text, VisionConfig.published(2048), AudioConfig.published(2048))

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """A random model of some 200,000 parameters, for tests."""
        text = DecoderConfig(64, 64, 3, 4, 2, 16, 96, 1e6, 1e-6, 4096, True, False, mrope_section=(2, 3, 3))
        ids = dict(zip(_IDS, range(40, 47), strict=True))
        return dataclasses.replace(cls(text, VisionConfig.tiny(), AudioConfig.tiny(), **ids), **changes)

    @classmethod
    def from_hf(cls, section: Section, *, tied: bool) -> Self:
        """From a config.json of the thinker, or the `thinker_config` of the whole model's.

        Args:
            section: of the thinker.
            tied: whether the output head is the embeddings. (The `tie_word_embeddings` of `text_config` says nothing:
                it says true by default, beside a head in the file.)

        Raises:
            UserError: naming all missing or mistyped keys.
        """
        text = decoder_config(section.section("text_config"), tied=tied, attention_bias=True)
        vision = VisionConfig.from_hf(section.section("vision_config"))
        audio = AudioConfig.from_hf(section.section("audio_config"))
        section.section("vision_config").only("in_channels", 3)
        if text.hidden_size > 0:  # else that alone is reported
            section.section("vision_config").only("out_hidden_size", text.hidden_size)
            section.section("audio_config").only("output_dim", text.hidden_size)
        numbers = [*_IDS, "position_id_per_seconds", "seconds_per_chunk"]
        config = cls(text, vision, audio, **{name: section.positive(name) for name in numbers})
        section.check()
        return config


_IDS = (
    "audio_token_index",
    "image_token_index",
    "video_token_index",
    "audio_start_token_id",
    "audio_end_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)

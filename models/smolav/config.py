"""Sizes and options of SmolAV."""

import dataclasses
from typing import Any, Literal, Self

from models.decoder import DecoderConfig

Layout = Literal["interleaved", "blocks"]
LAYOUTS: tuple[Layout, ...] = ("interleaved", "blocks")


@dataclasses.dataclass(frozen=True)
class SmolAVConfig:
    """SmolAV: a decoder and two projectors.

    Attributes:
        decoder: the language model.
        video_width: channels of the picture encoder's 7x7 map.
        audio_width: channels of the audio encoder.
        video_grid: a frame becomes video_grid^2 tokens; there is one frame per second.
        audio_rate: audio tokens per second.
        projector_width: hidden width of the projectors.
        time_periods: how many sine and cosine pairs tell a media token's time; the periods are 2, 4, 8... seconds.
        embedding_rms: root mean square of the language model's token embeddings, which projected tokens share.
        lora_rank: rank of the low-rank updates of the language model's attention.
        lora_scale: factor on the low-rank updates.
    """

    decoder: DecoderConfig
    video_width: int = 320
    audio_width: int = 384
    video_grid: int = 4
    audio_rate: int = 10
    projector_width: int = 576
    time_periods: int = 10
    embedding_rms: float = 0.136
    lora_rank: int = 16
    lora_scale: float = 2.0

    @property
    def frame_tokens(self) -> int:
        """Tokens per frame, which is per second of video."""
        return self.video_grid**2

    @classmethod
    def smollm2_135m(cls) -> Self:
        """The published size."""
        return cls(DecoderConfig.smollm2_135m())

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """A random model of a few thousand parameters, for tests."""
        small = cls(DecoderConfig.tiny(), video_width=12, audio_width=10, projector_width=16, lora_rank=2)
        return dataclasses.replace(small, **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` wrote."""
        decoder = dict(values["decoder"])
        if decoder.get("mrope_section") is not None:
            decoder["mrope_section"] = tuple(decoder["mrope_section"])
        return cls(**{**values, "decoder": DecoderConfig(**decoder)})

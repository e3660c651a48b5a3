"""Sizes and options of VideoLLaMA2.1-AV; the names are those of its config.json."""

import dataclasses
from typing import Self

from models.audio.beats import BeatsConfig
from models.decoder import DecoderConfig
from models.errors import UserError
from models.hf.config import Section
from models.hf.decoder import decoder_config
from models.videollama2.connector import STEP
from models.vision.siglip import SiglipConfig

VISION_TOWERS = {"siglip-so400m-patch14-384": SiglipConfig.so400m_14_384()}
"""Towers that a config.json may name, whose sizes it does not hold."""
FIXED = {
    "mm_projector_type": "stc_connector_v35",
    "mm_projector_a_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
}
"""What other models of the family choose differently, and is not supported."""


@dataclasses.dataclass(frozen=True)
class VideoLLaMA2Config:
    """The whole model.

    Attributes:
        decoder: Qwen2.
        vision: SigLIP.
        audio: BEATs.
        num_frames: how many frames of a clip are seen, whatever its length.
        mm_vision_select_layer: which of SigLIP's hidden states is taken, counted as transformers does: 0 are the
            embedded patches, -1 is the output of the last layer.
    """

    decoder: DecoderConfig
    vision: SiglipConfig
    audio: BeatsConfig
    num_frames: int
    mm_vision_select_layer: int = -2

    def __post_init__(self) -> None:
        """Checks what the parts demand of each other.

        Raises:
            UserError: if there would be no video token, or there is no such layer.
        """
        if self.num_frames < STEP or self.vision.grid < STEP:
            raise UserError(
                f"num_frames {self.num_frames} and SigLIP's {self.vision.grid} x {self.vision.grid} patches must all "
                f"be at least {STEP}, since the connector halves them."
            )
        if not 0 <= self.vision_layers <= self.vision.num_hidden_layers:
            raise UserError(
                f"mm_vision_select_layer {self.mm_vision_select_layer} does not exist: the tower has "
                f"{self.vision.num_hidden_layers} layers."
            )

    @property
    def vision_layers(self) -> int:
        """Layers of SigLIP that run."""
        layer = self.mm_vision_select_layer
        return layer if layer >= 0 else self.vision.num_hidden_layers + 1 + layer

    @property
    def video_tokens(self) -> int:
        """Tokens of a clip's frames."""
        return (self.num_frames // STEP) * (self.vision.grid // STEP) ** 2

    @classmethod
    def videollama2_1_7b_av(cls, num_frames: int = 16) -> Self:
        """DAMO-NLP-SG/VideoLLaMA2.1-7B-AV over Qwen2-7B-Instruct; trained with 16 frames."""
        decoder = DecoderConfig(
            152064, 3584, 28, 28, 4, 128, 18944, 1e6, 1e-6, 32768, attention_bias=True, tie_word_embeddings=False
        )
        return cls(decoder, SiglipConfig.so400m_14_384(), BeatsConfig.iter3_plus_as2m(), num_frames)

    @classmethod
    def from_hf(cls, section: Section) -> Self:
        """From a whole config.json; `check` the section afterwards (`models.hf.config.reading` does).

        The format leaves out the towers' sizes: upstream finds SigLIP's by the name in `mm_vision_tower`, and builds
        BEATs in one size only. For towers of other sizes two sections that upstream ignores may be added,
        `mm_vision_tower_config` and `mm_audio_tower_config`.

        Raises:
            UserError: if the model is of a kind that is not supported.
        """
        for name, value in FIXED.items():
            section.need(name, str)
            section.only(name, value)
        decoder = decoder_config(section, tied=section.need("tie_word_embeddings", bool), attention_bias=True)
        vision, audio = _vision(section), _audio(section)
        for name, width in (
            ("mm_hidden_size", vision.hidden_size),
            ("mm_hidden_size_a", audio.encoder_embed_dim),
            ("hidden_size_a", decoder.hidden_size),
        ):
            if (found := section.need(name, int)) != width and section.has(name):
                section.problem(f"{name} is {found}, but what it describes is {width} wide", None)
        frames, layer = section.positive("num_frames"), section.need("mm_vision_select_layer", int)
        return cls(decoder, vision, audio, frames, layer)


def _vision(section: Section) -> SiglipConfig:
    if section.has("mm_vision_tower_config"):
        return SiglipConfig.from_hf(section.section("mm_vision_tower_config"))
    name = section.need("mm_vision_tower", str)
    if (last := name.rstrip("/").rpartition("/")[2]) in VISION_TOWERS:
        return VISION_TOWERS[last]
    known = f"the known ones are {', '.join(VISION_TOWERS)}; add mm_vision_tower_config for another SigLIP"
    return section.problem(f"mm_vision_tower {name!r} is not known ({known})", SiglipConfig.tiny())


def _audio(section: Section) -> BeatsConfig:
    section.need("mm_audio_tower", str)
    if section.has("mm_audio_tower_config"):
        return BeatsConfig.from_hf(section.section("mm_audio_tower_config"))
    return BeatsConfig.iter3_plus_as2m()

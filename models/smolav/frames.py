"""Which frames of a clip SmolAV sees, and which clips are too long for it."""

import math
from pathlib import Path

from models.media.clip import Media, Outline, Progress, Sampling, Span, check_tokens, read_clip
from models.smolav.config import SmolAVConfig

FRAME_SIZE = 224  # EfficientNet-Lite0 was trained on pictures of this size


def load_clip(clip: Path, config: SmolAVConfig, progress: Progress | None = None, span: Span | None = None) -> Media:
    """Decodes a clip, or a part of it: one frame per second, and all of the sound.

    Raises:
        UserError: it cannot be read, or makes more tokens than the decoder can tell apart.
    """
    most = config.decoder.max_position_embeddings

    def accept(outline: Outline) -> None:
        tokens = outline.frames * config.frame_tokens + math.ceil((outline.seconds or 0) * config.audio_rate)
        check_tokens(tokens, most, "SmolAV")

    return read_clip(clip, Sampling(size=(FRAME_SIZE, FRAME_SIZE), accept=accept), span=span, progress=progress)

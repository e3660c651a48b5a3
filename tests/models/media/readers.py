"""The three models' ways to read a clip, without the models."""

from collections.abc import Callable
from pathlib import Path

from models.media.clip import Media
from models.qwen2_5_omni.config import VisionConfig
from models.qwen2_5_omni.frames import ClipFrames
from models.smolav.config import SmolAVConfig
from models.smolav.frames import load_clip as load_for_smolav
from models.videollama2.frames import load_clip as load_for_videollama2


def smolav(clip: Path) -> Media:
    return load_for_smolav(clip, SmolAVConfig.smollm2_135m())


def qwen(clip: Path) -> Media:
    return ClipFrames(VisionConfig.published(2048), max_context=32_768).load_clip(clip)


def videollama2(clip: Path) -> Media:
    return load_for_videollama2(clip, 384, 16)


READERS: dict[str, Callable[[Path], Media]] = {"smolav": smolav, "qwen": qwen, "videollama2": videollama2}

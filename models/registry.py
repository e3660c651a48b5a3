"""Models by name or folder, and checkpoints by the model_type of their config.json."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

from models.errors import UserError
from models.hf.config import Section, model_type, read_config, reading
from models.hf.source import Source, open_decoder
from models.hub.package_index import DownloadProgress
from models.interface import AVModel
from models.qwen2_5_omni.model import QwenOmniModel
from models.qwen2_5_omni.params import open_thinker
from models.smolav.config import SmolAVConfig
from models.smolav.model import SmolAVModel
from models.videollama2.model import VideoLLaMA2Model
from models.videollama2.params import open_videollama2

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

NAMED: dict[str, Callable[[DownloadProgress | None], AVModel]] = {
    "smolav": lambda progress: SmolAVModel.load(None, progress)
}
"""Models that need no folder."""

AV_MODELS: dict[str, Callable[[Path], AVModel]] = {
    "qwen2_5_omni": QwenOmniModel.load,
    "qwen2_5_omni_thinker": QwenOmniModel.load,
    "videollama2_qwen2": VideoLLaMA2Model.load,
}
"""Models that answer questions about clips, by the model_type of a checkpoint."""

CHECKPOINTS: dict[str, Callable[[Path, Section], Source]] = {
    "llama": functools.partial(open_decoder, attention_bias=False),
    "qwen2": functools.partial(open_decoder, attention_bias=True),
    "qwen2_5_omni": lambda folder, section: open_thinker(folder, section)[1],
    "qwen2_5_omni_thinker": lambda folder, section: open_thinker(folder, section)[1],
    "videollama2_qwen2": lambda folder, section: open_videollama2(folder, section)[1],
}
"""How a checkpoint of each model_type is opened, to be read, divided over a mesh, or written anew."""


def load(name: str, progress: DownloadProgress | None = None) -> AVModel:
    """A model by name, or the checkpoint in a folder; `progress` is called while downloading.

    Raises:
        UserError: if there is neither such a name nor such a folder, or the folder holds no model for clips.
    """
    if name in NAMED:
        return NAMED[name](progress)
    folder = _folder(name)
    config = read_config(folder)
    if config.has("decoder"):  # of the supported models SmolAV alone says so, and has no model_type
        return SmolAVModel.load(folder, progress)
    return AV_MODELS[model_type(config, AV_MODELS)](folder)


def _folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the folder of the checkpoint that it belongs to.")
    if HUB_NAME.fullmatch(name) and not folder.exists():
        raise UserError(
            f"There is no folder {name}. If it is a model's name on the Hugging Face hub, download it (hf download "
            f"{name} --local-dir FOLDER) and give that folder."
        )
    if not name or not folder.is_dir():
        raise UserError(f"Unknown model {name!r}; give one of {', '.join(NAMED)}, or the folder of a checkpoint.")
    return folder


def kv_heads(name: str) -> int:
    """KV heads K of the decoder that `load` would load; reads its configuration alone.

    Raises:
        UserError: as `load`.
    """
    if name in NAMED:
        return SmolAVConfig.smollm2_135m().decoder.num_key_value_heads
    config = read_config(_folder(name))
    names = ("decoder",) if config.has("decoder") else ("thinker_config", "text_config")
    for name in names:
        config = config.section(name) if config.has(name) else config
    return max(1, config.get("num_key_value_heads", int, 1))  # `load` says what is wrong with a configuration


def open_source(folder: Path) -> Source:
    """Opens a checkpoint folder of any supported family.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or its config.json is incomplete or not supported.
    """
    with reading(folder) as section:
        return CHECKPOINTS[model_type(section, CHECKPOINTS)](folder, section)

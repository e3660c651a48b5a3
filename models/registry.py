"""Models by name or folder, and checkpoints by the model_type of their config.json."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.hf.config import Section, model_type, read_config, reading
from models.hf.source import Source, open_decoder
from models.hub import huggingface
from models.hub.package_index import DownloadProgress
from models.interface import AVModel
from models.qwen2_5_omni.model import QwenOmniModel
from models.qwen2_5_omni.params import open_thinker
from models.smolav.config import SmolAVConfig
from models.smolav.model import SmolAVModel
from models.videollama2.model import VideoLLaMA2Model
from models.videollama2.params import PARTS, open_videollama2

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
    """A model by name, the checkpoint in a folder, or one of the Hugging Face hub: owner/name or owner/name@revision.

    A folder of that name comes first. `progress` is called while downloading.

    Raises:
        UserError: if there is neither such a name nor such a folder, it holds no model for clips, or the hub does not
            give it.
    """
    if name in NAMED:
        return NAMED[name](progress)
    folder = _folder(name, progress)
    config = read_config(folder)
    if config.has("decoder"):  # of the supported models SmolAV alone says so, and has no model_type
        return SmolAVModel.load(folder, progress)
    model: Any = AV_MODELS[model_type(config, AV_MODELS)](folder)
    return model if folder == Path(name) else dataclasses.replace(model, name=name)


def kv_heads(name: str, progress: DownloadProgress | None = None) -> int:
    """KV heads K of the decoder that `load` would load; reads its configuration alone.

    Raises:
        UserError: as `load`.
    """
    if name in NAMED:
        return SmolAVConfig.smollm2_135m().decoder.num_key_value_heads
    config = read_config(_folder(name, progress))
    for section in ("decoder",) if config.has("decoder") else ("thinker_config", "text_config"):
        config = config.section(section) if config.has(section) else config
    return max(1, config.get("num_key_value_heads", int, 1))  # `load` says what is wrong with a configuration


def _folder(name: str, progress: DownloadProgress | None) -> Path:
    if Path(name).is_file():
        raise UserError(f"{name} is a file; name the folder of the checkpoint that it belongs to.")
    folder = checkpoint_folder(name, AV_MODELS, progress)
    if not name or not folder.is_dir():
        raise UserError(
            f"Unknown model {name!r}; give one of {', '.join(NAMED)}, the folder of a checkpoint, or OWNER/NAME of the "
            "Hugging Face hub."
        )
    return folder


def checkpoint_folder(name: str, supported: Iterable[str], progress: DownloadProgress | None = None) -> Path:
    """A folder as named, or if there is none, the one that the Hugging Face hub's cache holds for owner/name.

    Args:
        name: a path, owner/name or owner/name@revision.
        supported: each model_type whose tensors are worth a download.
        progress: called while downloading.

    Raises:
        UserError: if the hub does not give it, or it is of another model_type.
    """
    if Path(name).exists() or not huggingface.is_name(name):
        return Path(name)

    def parts(folder: Path) -> Iterable[str]:
        return PARTS if model_type(read_config(folder), supported) == "videollama2_qwen2" else ()

    return huggingface.fetch(name, parts, progress)


def open_source(folder: Path) -> Source:
    """Opens a checkpoint folder of any supported family.

    Raises:
        UserError: if there is no checkpoint, or it is damaged, or its config.json is incomplete or not supported.
    """
    with reading(folder) as section:
        return CHECKPOINTS[model_type(section, CHECKPOINTS)](folder, section)

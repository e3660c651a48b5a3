"""Tiny checkpoint folders of VideoLLaMA2.1-AV."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save_file

from models.hf.config import Section
from models.layers.init import FastRngs, abstract_params
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.modeling import VideoLLaMA2
from models.videollama2.params import PARTS, videollama2_tensors
from tests.models.videollama2.cases import ModelCase, model_config
from tests.models.videollama2.parameters import seeded_tensors

BIAS = "model.audio_tower.encoder.layers.{}.self_attn.relative_attention_bias.weight"


def case_config(case: ModelCase) -> VideoLLaMA2Config:
    """A case's configuration, read as from a checkpoint."""
    return VideoLLaMA2Config.from_hf(Section(Path("config.json"), model_config(case)))


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Writes config.json; a value of None leaves the key out."""
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def write_checkpoint(folder: Path, case: ModelCase, *, bins: bool, **changes: Any) -> None:
    """Writes config.json and the tensors, but no tokenizer.

    Args:
        folder: to write into.
        case: the model; a vocabulary of another size is among `changes`.
        bins: whether the audio tower and its projector lie in files of their own, as in the published checkpoint.
        changes: other values of config.json.
    """
    values = model_config(case) | changes
    write_config(folder, values)
    config = VideoLLaMA2Config.from_hf(Section(folder / "config.json", values))
    _, shapes = abstract_params(lambda: VideoLLaMA2(config, rngs=FastRngs(0)))
    tensors = seeded_tensors(case.seed, videollama2_tensors(config), shapes)
    if bins:
        for file, prefix in PARTS.items():
            part = {name: torch.from_numpy(tensors.pop(name)) for name in list(tensors) if name.startswith(prefix)}
            if BIAS.format(0) in part:  # one tensor that every layer names
                part |= {BIAS.format(i): part[BIAS.format(0)] for i in range(config.audio.encoder_layers)}
            torch.save(part, folder / file)
    save_file(tensors, folder / "model.safetensors")

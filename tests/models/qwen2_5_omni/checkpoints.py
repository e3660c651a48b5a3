"""Tiny random checkpoint folders with the real vocabulary, as transformers writes them."""

import dataclasses
import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from models.decoder import DecoderConfig
from models.qwen2_5_omni.config import AudioConfig, ThinkerConfig, VisionConfig
from tests.models.qwen2_5_omni.thinkers import reference_thinker
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer

TEXT = DecoderConfig(151680, 32, 2, 2, 1, 16, 48, 1e6, 1e-6, 8192, True, False, mrope_section=(2, 3, 3))
CONFIG = dataclasses.replace(
    ThinkerConfig.omni_7b(),
    text=TEXT,
    vision=VisionConfig.tiny(out_hidden_size=32),
    audio=AudioConfig.tiny(output_dim=32),
)


def write_thinker(folder: Path) -> Path:
    """A thinker by itself."""
    reference_thinker(CONFIG, 0).save_pretrained(folder)
    write_tokenizer(folder, form="tokenizer.json")
    return folder


def write_omni(folder: Path) -> Path:
    """The whole model's layout: the thinker nested, beside what makes speech."""
    write_thinker(folder)
    tensors = {f"thinker.{name}": values for name, values in load_file(folder / "model.safetensors").items()}
    tensors |= {"talker.thinker_to_talker_proj.bias": tensors["thinker.model.norm.weight"].copy()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    thinker = json.loads((folder / "config.json").read_text())
    config = {"model_type": "qwen2_5_omni", "thinker_config": thinker, "talker_config": {}, "token2wav_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

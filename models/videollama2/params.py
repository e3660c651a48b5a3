"""VideoLLaMA2.1-AV's checkpoints: names of the tensors, and the files that hold them."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from models.audio.beats import beats_tensors
from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from models.hf.config import Section
from models.hf.decoder import decoder_copies, decoder_tensors
from models.hf.source import Source
from models.hf.tensors import Tensors, linear
from models.layers.init import FastRngs
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.connector import stc_tensors
from models.videollama2.modeling import VideoLLaMA2
from models.vision.siglip import siglip_tensors

PARTS = {"audio_tower.bin": "model.audio_tower.", "mm_projector_a.bin": "model.mm_projector_a."}
"""Files that the published checkpoint holds beside its safetensors, and how the names of their tensors begin."""
SHARED_BIAS = "model.audio_tower.encoder.layers.{}.self_attn.relative_attention_bias.weight"
"""Upstream's layers all name the tensor of layer 0."""


def videollama2_tensors(config: VideoLLaMA2Config) -> Tensors:
    """Names in a checkpoint of the parameters of `VideoLLaMA2`."""
    c = config
    projector = linear("0", ("up",), bias=True) | linear("2", ("down",), bias=True)
    parts = {
        ("model.vision_tower.vision_tower.vision_model.", "vision"): siglip_tensors(c.vision),
        ("model.mm_projector.", "connector"): stc_tensors(c.vision.hidden_size, c.decoder.hidden_size),
        ("model.audio_tower.", "audio"): beats_tensors(c.audio),
        ("model.mm_projector_a.", "audio_projector"): projector,
    }
    tensors = decoder_tensors(c.decoder, into=("decoder",))
    for (prefix, module), found in parts.items():
        for name, tensor in found.items():
            tensors[prefix + name] = dataclasses.replace(tensor, path=(module, *tensor.path))
    return tensors


def open_videollama2(folder: Path, section: Section) -> tuple[VideoLLaMA2Config, Source]:
    """Opens a checkpoint folder, of which `section` is the config.json; `check` the section afterwards.

    Raises:
        UserError: if the configuration is not supported, or there is no whole checkpoint.
    """
    config = VideoLLaMA2Config.from_hf(section)

    def make(dtype: jnp.dtype) -> VideoLLaMA2:
        return VideoLLaMA2(config, rngs=FastRngs(0), dtype=dtype)

    copies = {SHARED_BIAS.format("*"): SHARED_BIAS.format(0), **decoder_copies(config.decoder)}
    checkpoint = open_checkpoint(folder, PARTS)
    for file, prefix in PARTS.items():
        if not checkpoint.orbax and not any(name.startswith(prefix) for name in checkpoint.tensors):
            raise UserError(f"{folder} lacks {file}, and the tensors {prefix}* are nowhere else; copy it too.")
    return config, Source(checkpoint, make, videollama2_tensors(config), section.values, copies=copies)

"""Towers run their layers in scans: a program for many layers is as large as one for a few."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from models.audio.beats import Beats, BeatsConfig
from models.audio.whisper import WhisperEncoder, WhisperEncoderConfig
from models.layers.init import FastRngs, abstract_params
from models.qwen2_5_omni.audio import AudioTower, audio_blocks
from models.qwen2_5_omni.config import AudioConfig, VisionConfig
from models.qwen2_5_omni.vision import VisionTower, grid_plan
from models.vision.siglip import SiglipConfig, SiglipVision

FEW, MANY = 3, 6
Tower = Callable[[int], tuple[type[nnx.Module], Any, tuple[Any, ...]]]


def omni_vision(layers: int) -> tuple[type[nnx.Module], Any, tuple[Any, ...]]:
    config = VisionConfig.tiny(depth=layers, fullatt_block_indexes=(1, layers - 1))
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return VisionTower, config, (np.zeros((1, 16, values), np.float32), grid_plan(4, 4, config))


def omni_audio(layers: int) -> tuple[type[nnx.Module], Any, tuple[Any, ...]]:
    config = AudioConfig.tiny(encoder_layers=layers)
    return AudioTower, config, (audio_blocks([np.zeros((config.num_mel_bins, 20), np.float32)], config),)


def siglip(layers: int) -> tuple[type[nnx.Module], Any, tuple[Any, ...]]:
    config = SiglipConfig.tiny(num_hidden_layers=layers)
    return SiglipVision, config, (np.zeros((1, config.image_size, config.image_size, 3), np.float32),)


def beats(layers: int) -> tuple[type[nnx.Module], Any, tuple[Any, ...]]:
    return Beats, BeatsConfig.tiny(encoder_layers=layers), (np.zeros((1, 32, 32), np.float32),)


def whisper(layers: int) -> tuple[type[nnx.Module], Any, tuple[Any, ...]]:
    config = dataclasses.replace(WhisperEncoderConfig.tiny(), encoder_layers=layers)
    return WhisperEncoder, config, (np.zeros((1, config.num_mel_bins, 8), np.float32),)


def operations(tower: Tower, layers: int) -> int:
    """Size of a tower's program, which is not compiled; SigLIP's is of all layers but one, as AV-LLMs read it."""
    make, config, inputs = tower(layers)
    graph, shapes = abstract_params(lambda: make(config, rngs=FastRngs(0)))

    def run(params: Any, *inputs: Any) -> jax.Array:
        module = nnx.merge(graph, params)
        return module.patches(*inputs, layers - 1) if isinstance(module, SiglipVision) else module(*inputs)

    return jax.jit(run).lower(shapes, *inputs).as_text().count("\n")


@pytest.mark.parametrize("tower", [omni_vision, omni_audio, siglip, beats, whisper])
def test_a_program_does_not_grow_with_the_layers(tower: Tower) -> None:
    assert operations(tower, MANY) == operations(tower, FEW)

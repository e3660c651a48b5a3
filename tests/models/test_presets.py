"""Presets at full size, by shape: transformers' models of the published sizes, and published numbers of parameters."""

import functools
import math

import jax.numpy as jnp
import pytest
import torch
from flax.traverse_util import flatten_dict
from transformers import (
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig

from models.hf.decoder import decoder_tensors
from models.layers.init import FastRngs, abstract_params
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.modeling import Thinker, thinker_tensors
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.modeling import VideoLLaMA2
from models.vision.siglip import siglip_tensors

BF16 = jnp.dtype(jnp.bfloat16)
QWEN2_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
QWEN2_3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
}
VISION = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
AUDIO = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}


def shapes_of(make):
    """Shapes of a module's parameters, by path."""
    return {path: leaf.shape for path, leaf in flatten_dict(abstract_params(make)[1]).items()}


@functools.cache
def thinker_shapes(config):
    return shapes_of(lambda: Thinker(config, rngs=FastRngs(0), dtype=BF16))


def count(shapes, *prefix):
    return sum(math.prod(shape) for path, shape in shapes.items() if path[: len(prefix)] == prefix)


def stored_shapes(tensors, shapes):
    """Shapes that the checkpoint's tensors must have for our parameters, by name."""
    found = {}
    for name, tensor in tensors.items():
        ours = shapes[tensor.path][tensor.layer is not None :]
        back = ours if tensor.order is None else tuple(ours[tensor.order.index(i)] for i in range(len(ours)))
        if tensor.stored is not None:
            assert math.prod(tensor.stored) == math.prod(back)
        found[name] = tensor.stored or back
    return found


def on_disk(model):
    """Shapes of a transformers model's tensors, by the names that its checkpoints have."""
    names = {}
    for name, tensor in model.state_dict().items():
        at = name if name == "lm_head.weight" else name.removeprefix("model.")
        names[at.replace("language_model.", "model.")] = tuple(tensor.shape)
    return names


@pytest.mark.parametrize(
    ("config", "text", "total"),
    [(ThinkerConfig.omni_7b(), QWEN2_7B, 8_931_813_888), (ThinkerConfig.omni_3b(), QWEN2_3B, 4_703_464_448)],
    ids=["7b", "3b"],
)
def test_thinkers_are_those_of_transformers(config, text, total):
    width = text["hidden_size"]
    parts = {"vision_config": VISION | {"out_hidden_size": width}, "audio_config": AUDIO | {"output_dim": width}}
    with torch.device("meta"):
        model = Qwen2_5OmniThinkerForConditionalGeneration(Qwen2_5OmniThinkerConfig(text_config=text, **parts))
    shapes = thinker_shapes(config)
    assert stored_shapes(thinker_tensors(config), shapes) == on_disk(model)
    assert count(shapes) == sum(parameter.numel() for parameter in model.parameters()) == total


def test_parts_of_the_7b_thinker():
    """The decoder is a Qwen2.5-7B, of which its authors publish 7.61 billion parameters, 6.53 without embeddings."""
    shapes = thinker_shapes(ThinkerConfig.omni_7b())
    assert (count(shapes, "vision"), count(shapes, "audio")) == (676_550_144, 639_647_232)
    embeddings = count(shapes, "decoder", "tokens") + count(shapes, "decoder", "head")
    assert count(shapes, "decoder") == 7_615_616_512
    assert round((count(shapes, "decoder") - embeddings) / 1e9, 2) == 6.53


def test_the_3b_decoder():
    """Qwen2.5-3B, published as 3.09 billion, 2.77 without embeddings; the thinker's output head is one of its own."""
    shapes = thinker_shapes(ThinkerConfig.omni_3b())
    tied = count(shapes, "decoder") - count(shapes, "decoder", "head")
    assert tied == 3_085_938_688
    assert round((tied - count(shapes, "decoder", "tokens")) / 1e9, 2) == 2.77


def test_videollama2():
    """Qwen2-7B and SigLIP so400m as in transformers; BEATs and its projector as large as their published files."""
    config = VideoLLaMA2Config.videollama2_1_7b_av()
    shapes = shapes_of(lambda: VideoLLaMA2(config, rngs=FastRngs(0), dtype=BF16))
    with torch.device("meta"):
        decoder = Qwen2ForCausalLM(Qwen2Config(**QWEN2_7B, tie_word_embeddings=False))
        vision = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        )
    part = {path[1:]: shape for path, shape in shapes.items() if path[0] == "decoder"}
    expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert stored_shapes(decoder_tensors(config.decoder), part) == expected
    part = {path[1:]: shape for path, shape in shapes.items() if path[0] == "vision"}
    expected = {name.removeprefix("vision_model."): tuple(x.shape) for name, x in vision.state_dict().items()}
    assert stored_shapes(siglip_tensors(config.vision), part) == expected
    assert count(shapes, "decoder") == 7_615_616_512
    assert count(shapes, "vision") == 428_225_600
    assert 181 < 2 * count(shapes, "audio") / 1e6 < 182  # audio_tower.bin is of 182 MB, names and file headers included
    assert round(2 * count(shapes, "audio_projector") / 1e6, 1) == 31.2  # mm_projector_a.bin

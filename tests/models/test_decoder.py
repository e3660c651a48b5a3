"""The shared decoder against transformers: prefill and cached decoding, tiny models and SmolLM2's real weights."""

import numpy as np
import pytest
import torch

import acckv_jax
from models.decoder import Decoder, DecoderConfig
from models.layers.init import FastRngs, abstract_params
from models.layers.rope import rotate, rotation
from models.over_decoder import DecoderStep
from models.smolav.smollm2 import load_smollm2
from tests.models.cached import logits_through_cache
from tests.models.hf_decoder import hf_model
from tests.models.parameters import random_params
from tests.tiers import quick_first, quick_only
from tests.tolerances import LOGITS, PUBLISHED

PROMPT, STEPS = 40, 32

CONFIGS = {
    "llama_tied": DecoderConfig.tiny(),
    "llama_untied": DecoderConfig.tiny(tie_word_embeddings=False, num_key_value_heads=4),
    "qwen2": DecoderConfig.tiny(attention_bias=True, num_key_value_heads=1, rope_theta=1e6, rms_norm_eps=1e-6),
    "qwen2_untied": DecoderConfig.tiny(attention_bias=True, tie_word_embeddings=False, head_dim=16),
}


def logits_of_every_token(decoder, params, tokens):
    """Of the last of PROMPT tokens and of those after them: [steps + 1, V]."""
    arguments = {"inputs": tokens[:, :PROMPT], "prompt": acckv_jax.make_prompt(np.zeros((1, PROMPT), int))}
    return np.asarray(logits_through_cache(params, arguments, tokens[:, PROMPT:], decoder=decoder))[:, 0]


def check(config, graph, params, tolerance, steps=STEPS):
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, PROMPT + steps)).astype(np.int32)
    with torch.no_grad():
        expected = hf_model(config, params)(torch.tensor(tokens).long()).logits[0, PROMPT - 1 :].numpy()
    decoder = acckv_jax.Decoder(DecoderStep(graph), config.num_hidden_layers, scans=True)
    ours = logits_of_every_token(decoder, params, tokens)
    np.testing.assert_allclose(ours, expected, **tolerance)


@pytest.mark.parametrize("name", quick_only(CONFIGS, ("llama_tied", "qwen2_untied")))
def test_equals_transformers(name):
    config = CONFIGS[name]
    check(config, *random_params(lambda: Decoder(config, rngs=FastRngs(0))), LOGITS)


@pytest.mark.parametrize("steps", quick_first((0, STEPS)))
def test_smollm2_equals_transformers(steps):
    config, params = load_smollm2()
    graph, _ = abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))
    check(config, graph, params, PUBLISHED, steps)


def test_sectioned_rotation_equals_the_published_form():
    """Qwen2-VL takes cos and sin of all axes at full width, and piece i of sections + sections from axis i % 3."""
    rng, sections, size, theta = np.random.default_rng(0), (2, 3, 3), 16, 1e6
    positions = rng.integers(0, 500, (3, 2, 7)).astype(np.int32)
    q = rng.standard_normal((2, 7, 4, size)).astype(np.float32)
    frequencies = 1.0 / theta ** (np.arange(0, size, 2) / size)
    angles = np.concatenate([positions[..., None] * frequencies] * 2, -1)
    edges = np.cumsum((0, *sections, *sections))
    mixed = np.concatenate([angles[i % 3, ..., edges[i] : edges[i + 1]] for i in range(6)], -1)[:, :, None]
    half = np.concatenate([-q[..., size // 2 :], q[..., : size // 2]], -1)
    expected = q * np.cos(mixed) + half * np.sin(mixed)
    np.testing.assert_allclose(rotate(q, rotation(positions, size, theta, sections)), expected, rtol=0, atol=1e-4)


def test_sections_must_fit():
    with pytest.raises(ValueError, match="must sum to head_dim/2 = 8"):
        rotation(np.zeros((3, 1, 4), np.int32), 16, 1e4, (2, 3, 4))

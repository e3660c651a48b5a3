"""The shared decoder against transformers: prefill and cached decoding, tiny models and SmolLM2's real weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import acckv_jax
from models.decoder import Decoder, DecoderConfig
from models.layers.init import abstract_params, init_params
from models.layers.rope import rotate, rotation
from models.over_decoder import DecoderStep
from models.smolav.smollm2 import load_smollm2
from tests.models.hf_decoder import hf_model
from tests.tolerances import LOGITS, PUBLISHED

PROMPT, STEPS = 40, 32

CONFIGS = {
    "llama_tied": DecoderConfig.tiny(),
    "llama_untied": DecoderConfig.tiny(tie_word_embeddings=False, num_key_value_heads=4),
    "qwen2": DecoderConfig.tiny(attention_bias=True, num_key_value_heads=1, rope_theta=1e6, rms_norm_eps=1e-6),
    "qwen2_untied": DecoderConfig.tiny(attention_bias=True, tie_word_embeddings=False, head_dim=16),
}


def logits_of_every_token(decoder, params, tokens):
    """Prefill of the first PROMPT tokens, then one cached decode step per token: logits [STEPS + 1, V]."""
    policy = acckv_jax.make_policy("full")
    prompt = acckv_jax.make_prompt(np.zeros((1, PROMPT), int))
    run = jax.jit(functools.partial(acckv_jax.prefill, decoder, policy=policy, reserved_slots=STEPS))
    logits, cache = run(params, tokens[:, :PROMPT], prompt)
    one = jax.jit(functools.partial(acckv_jax.decode_step, decoder, policy=policy), donate_argnames="cache")
    seen = [logits[0]]
    for token in tokens[0, PROMPT:]:
        logits, cache = one(params, tokens=token[None], cache=cache, active=jnp.ones(1, bool))
        seen.append(logits[0])
    return np.stack(seen)


def check(config, graph, params, tolerance):
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, PROMPT + STEPS)).astype(np.int32)
    with torch.no_grad():
        expected = hf_model(config, params)(torch.tensor(tokens).long()).logits[0, PROMPT - 1 :].numpy()
    ours = logits_of_every_token(
        acckv_jax.Decoder(DecoderStep(graph), config.num_hidden_layers), params, jnp.asarray(tokens)
    )
    np.testing.assert_allclose(ours, expected, **tolerance)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name):
    config = CONFIGS[name]
    graph, params = init_params(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    noise = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), params)
    check(config, graph, params, LOGITS)


def test_smollm2_equals_transformers():
    config, params = load_smollm2()
    graph, _ = abstract_params(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    check(config, graph, params, PUBLISHED)


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

"""The audio tower against transformers' Qwen2_5OmniAudioEncoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

from models.layers.init import FastRngs, abstract_params
from models.qwen2_5_omni.audio import AudioTower, audio_blocks, audio_tensors
from models.qwen2_5_omni.config import AudioConfig
from models.qwen2_5_omni.positions import audio_tokens
from tests.models.qwen2_5_omni.towers import DRAWS, STRUCTURES, loaded, randomise
from tests.tiers import quick_first
from tests.tolerances import FP32, LOGITS

BLOCKS = 8  # what all sounds are padded to, so that they share a program


def make_reference(config):
    return Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**dataclasses.asdict(config))).eval()


def run_reference(reference, mels):
    """Tokens of several sounds, encoded together."""
    lengths = torch.tensor([mel.shape[1] for mel in mels])
    with torch.no_grad():
        return reference(torch.from_numpy(np.concatenate(mels, axis=1)), lengths).last_hidden_state.numpy()


def encoder(config):
    graph, _ = abstract_params(lambda: AudioTower(config, rngs=FastRngs(0)))
    return jax.jit(lambda params, blocks: nnx.merge(graph, params)(blocks))


def random_mels(random, lengths, config):
    return [random.standard_normal((config.num_mel_bins, n)).astype(np.float32) for n in lengths]


def tokens_of(run, params, mels, config):
    tokens = run(params, audio_blocks(mels, config, blocks=BLOCKS))
    return np.asarray(tokens)[: sum(audio_tokens(mel.shape[1]) for mel in mels)]


@pytest.mark.parametrize("structure", quick_first(range(STRUCTURES)))
def test_equals_transformers(structure, tmp_path):
    random = np.random.default_rng(structure)
    config = AudioConfig.tiny(
        encoder_attention_heads=int(random.choice([1, 2, 4, 8])),
        n_window=int(random.choice([3, 5, 8, 25, 100])),
        num_mel_bins=int(random.choice([8, 128])),
        output_dim=int(random.choice([16, 48])),
    )
    block = 2 * config.n_window
    reference, run = make_reference(config), encoder(config)
    for draw in range(DRAWS):
        randomise(reference, seed=1000 * structure + draw)
        params = loaded(reference, audio_tensors(config), lambda: AudioTower(config, rngs=FastRngs(0)), tmp_path)
        lengths = random.integers(3, [block, 2 * block, 4 * block + 1], endpoint=True)
        mels = random_mels(random, lengths, config)
        expected = run_reference(reference, mels)
        assert expected.std() > 0.3
        np.testing.assert_allclose(tokens_of(run, params, mels, config), expected, **LOGITS)


@pytest.fixture(scope="module")
def odd_blocks(tmp_path_factory):
    """A tower whose blocks give 5 frames, so that pairs of frames cross them, in both implementations."""
    config = AudioConfig.tiny(n_window=5)
    reference = make_reference(config)
    randomise(reference, seed=0)
    folder = tmp_path_factory.mktemp("audio")
    params = loaded(reference, audio_tensors(config), lambda: AudioTower(config, rngs=FastRngs(0)), folder)
    return config, reference, encoder(config), params


@pytest.mark.parametrize("length", [*range(3, 13), 19, 20, 21, 22, 80])
def test_lengths(odd_blocks, length):
    """Shorter than a block, around a whole one and two, and as many as there is room for."""
    config, reference, run, params = odd_blocks
    mels = random_mels(np.random.default_rng(length), [length], config)
    np.testing.assert_allclose(tokens_of(run, params, mels, config), run_reference(reference, mels), **LOGITS)


def test_sounds_do_not_hear_one_another(odd_blocks):
    config, _, run, params = odd_blocks
    mels = random_mels(np.random.default_rng(0), [17, 23, 1, 4], config)
    alone = [tokens_of(run, params, [mel], config) for mel in mels]
    assert [len(tokens) for tokens in alone] == [4, 6, 0, 1]
    np.testing.assert_allclose(tokens_of(run, params, mels, config), np.concatenate(alone), **FP32)


def test_half_precision(odd_blocks):
    config, _, run, params = odd_blocks
    graph, _ = abstract_params(lambda: AudioTower(config, rngs=FastRngs(0), dtype=jnp.bfloat16))
    blocks = audio_blocks(random_mels(np.random.default_rng(0), [33], config), config, blocks=BLOCKS)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    half = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(halves, blocks)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[:8].astype(jnp.float32), run(params, blocks)[:8], rtol=0, atol=0.1)


@pytest.mark.parametrize("shape", [(127, 5), (128, 0), (128,)])
def test_features_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"Log-mel features are \[128, frames\], not"):
        audio_blocks([np.zeros(shape, np.float32)], AudioConfig.tiny())

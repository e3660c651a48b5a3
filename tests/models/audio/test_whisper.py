"""The Whisper encoder with its real weights against transformers' WhisperModel."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Reference

from models.audio.log_mel import log_mel
from models.audio.whisper import WhisperEncoder, WhisperEncoderConfig, load_whisper_tiny_en
from models.layers.init import FastRngs, Params, abstract_params
from tests.models.parameters import assert_fits
from tests.tolerances import FP32, PUBLISHED


def reference_encoder(params: Params, config: WhisperEncoderConfig) -> Reference:
    def linear(name: str, p: Params) -> dict[str, np.ndarray]:
        bias = {name + ".bias": p["bias"]} if "bias" in p else {}
        return {name + ".weight": p["kernel"].T} | bias

    def norm(name: str, p: Params) -> dict[str, np.ndarray]:
        return {name + ".weight": p["scale"], name + ".bias": p["bias"]}

    state = {"embed_positions.weight": params["positions"]} | norm("layer_norm", params["norm"])
    for name in ("conv1", "conv2"):
        state |= {name + ".weight": params[name]["kernel"].transpose(2, 1, 0), name + ".bias": params[name]["bias"]}
    for i in range(config.encoder_layers):
        p = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        at = f"layers.{i}."
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")):
            state |= linear(f"{at}self_attn.{theirs}", p["attn"][ours])
        state |= norm(at + "self_attn_layer_norm", p["attn_norm"]) | norm(at + "final_layer_norm", p["mlp_norm"])
        state |= linear(at + "fc1", p["up"]) | linear(at + "fc2", p["down"])
    sizes = {f: getattr(config, f) for f in ("num_mel_bins", "d_model", "encoder_layers", "encoder_attention_heads")}
    encoder = Reference(
        WhisperConfig(encoder_ffn_dim=config.encoder_ffn_dim, max_source_positions=config.max_source_positions, **sizes)
    ).eval()
    encoder.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in state.items()})
    return encoder


def test_tiny_en_equals_transformers() -> None:
    graph, params = load_whisper_tiny_en()
    samples = np.random.default_rng(0).standard_normal(5 * 16_000) * np.linspace(0, 0.3, 5 * 16_000)
    mel = log_mel(samples, pad_to=30 * 16_000)[None]
    ours = jax.jit(lambda p, x: nnx.merge(graph, p)(x))(params, mel)
    with torch.no_grad():
        theirs = reference_encoder(params, WhisperEncoderConfig.tiny_en())(torch.from_numpy(mel)).last_hidden_state
    assert ours.shape == (1, 1500, 384)
    np.testing.assert_allclose(ours, theirs.numpy(), **PUBLISHED)


def test_tiny_en_parameters_fit_and_positions_are_sinusoids() -> None:
    _, params = load_whisper_tiny_en()
    assert_fits(params, lambda: WhisperEncoder(WhisperEncoderConfig.tiny_en(), rngs=FastRngs(0)))
    angles = np.arange(1500)[:, None] * np.exp(-np.log(10_000) * np.arange(192) / 191)
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(params["positions"], sinusoids, atol=6e-4, rtol=0)  # the file holds half precision


def test_shorter_and_ragged_lengths() -> None:
    config = WhisperEncoderConfig.tiny()
    graph, shapes = abstract_params(lambda: WhisperEncoder(config, rngs=FastRngs(0)))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda s: random.standard_normal(s.shape).astype(np.float32) * 0.2, shapes)
    encode = jax.jit(lambda mel: nnx.merge(graph, params)(mel))
    mel = random.standard_normal((2, config.num_mel_bins, 40)).astype(np.float32)
    assert encode(mel).shape == (2, 20, config.d_model)
    assert encode(mel[:, :, :12]).shape == (2, 6, config.d_model)
    np.testing.assert_allclose(encode(mel)[1:], encode(np.stack([mel[0] + 1, mel[1]]))[1:], **FP32)
    for bad in (mel[:, :, :11], np.tile(mel, (1, 1, 2)), mel[:, :4], mel[:, :, :0]):
        with pytest.raises(ValueError, match="pad or cut the sound"):
            encode(bad)

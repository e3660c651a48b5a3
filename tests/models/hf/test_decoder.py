"""Llama and Qwen2 checkpoints: written by transformers, computed by us, written by us, loaded by transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import acckv_jax
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.hf.config import Section, reading
from models.hf.decoder import decoder_config, decoder_tensors
from models.hf.export import save_params
from models.layers.init import FastRngs, abstract_params
from models.over_decoder import DecoderStep
from models.registry import open_source
from tests.models.parameters import random_params
from tests.models.test_decoder import PROMPT, STEPS, logits_of_every_token
from tests.tiers import quick_first
from tests.tolerances import LOGITS

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
TOKENS = np.random.default_rng(0).integers(0, 96, (1, PROMPT + STEPS)).astype(np.int32)


def save_hf(folder, family, *, tied):
    """A checkpoint of random weights, biases included; returns the model."""
    config, model = FAMILIES[family]
    torch.manual_seed(0)
    made = model(config(**SIZES, tie_word_embeddings=tied)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder, max_shard_size="20KB")
    return made


def old_spelling(folder):
    """config.json as transformers 4 wrote it, with rotary frequencies of their own place and no head_dim."""
    values = json.loads((folder / "config.json").read_text())
    values |= {"rope_theta": values.pop("rope_parameters")["rope_theta"], "rope_scaling": None}
    values |= {"torch_dtype": values.pop("dtype"), "transformers_version": "4.57.6"}
    values.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(values))


def our_logits(folder):
    graph, params = open_source(folder).load(jnp.float32)
    return logits_of_every_token(acckv_jax.Decoder(DecoderStep(graph), 2, scans=True), params, TOKENS)


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS).long()).logits[0, PROMPT - 1 :].numpy()


@pytest.mark.parametrize("spelling", quick_first((5, 4)))
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_there_and_back(tmp_path, family, tied, spelling):
    model = save_hf(tmp_path / "theirs", family, tied=tied)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    if spelling == 4:
        old_spelling(tmp_path / "theirs")
    expected = their_logits(model)
    np.testing.assert_allclose(our_logits(tmp_path / "theirs"), expected, **LOGITS)

    source = open_source(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    _, params = source.load(jnp.float32)
    save_params(tmp_path / "ours", params, source.tensors, config, max_shard_bytes=20_000)
    assert not (tmp_path / "ours" / "model.safetensors").exists()
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(model) and not any(told.values()), told
    np.testing.assert_array_equal(their_logits(again.eval()), expected)


def test_a_second_copy_of_tied_embeddings_must_be_one(tmp_path):
    config = DecoderConfig.tiny(attention_bias=True)
    _, params = random_params(lambda: Decoder(config, rngs=FastRngs(0)))
    values = {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    save_params(tmp_path / "a", params, decoder_tensors(config), SIZES | values | {"hidden_act": "silu"})
    file = tmp_path / "a" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": np.asarray(params["tokens"]["embedding"])}, file)
    _, again = open_source(tmp_path / "a").load(jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    save_file(load_file(file) | {"lm_head.weight": np.asarray(params["tokens"]["embedding"]) + 1}, file)
    different = r"1 different from the tensor that it should repeat: lm_head.weight \(model.embed_tokens.weight\)[.]$"
    with pytest.raises(UserError, match=different):
        open_source(tmp_path / "a").load(jnp.float32)
    save_file({f"x.{name}": value for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match="27 unknown: .*; 26 missing: "):
        open_source(tmp_path / "a").load(jnp.float32)


def test_names_cover_the_decoder():
    config = DecoderConfig.tiny(attention_bias=True, tie_word_embeddings=False)
    _, shapes = abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))
    tensors = decoder_tensors(config, prefix="thinker.model.", head="thinker.lm_head.weight", into=("text", 0))
    assert all(tensor.path[:2] == ("text", 0) for tensor in tensors.values())
    leaves = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["layers"])}
    assert all(leaf.shape[0] == config.num_hidden_layers for leaf in leaves.values())
    in_layers = len(jax.tree.leaves(shapes["layers"]))
    expected = len(jax.tree.leaves(shapes)) + (config.num_hidden_layers - 1) * in_layers
    assert len(tensors) == expected and all(name.startswith("thinker.") for name in tensors)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "gelu"}, r"only silu is supported as hidden_act \(text\)"),
        ({"use_sliding_window": True}, "text.use_sliding_window is True, but only False is supported"),
        ({"mlp_bias": True}, "text.mlp_bias is True, but only False is supported"),
        ({"attention_bias": True}, "text.attention_bias is True, but only False is supported"),
        ({"partial_rotary_factor": 0.5}, "text.partial_rotary_factor is 0.5, but only 1.0 is supported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "only full_attention is supported in layer_types"),
        ({"num_attention_heads": 0}, "cannot be used: text.num_attention_heads must be at least 1, not 0[.]$"),
        ({"num_key_value_heads": 0}, "cannot be used: text.num_key_value_heads must be at least 1, not 0[.]$"),
        ({"hidden_size": -32}, "cannot be used: text.hidden_size must be at least 1, not -32[.]$"),
        ({"vocab_size": 0, "num_hidden_layers": -1}, "text.vocab_size must be .*text.num_hidden_layers must be at"),
        ({"intermediate_size": 0, "max_position_embeddings": 0}, "text.intermediate_size .*text.max_position_emb"),
        ({"head_dim": 7}, "the heads are 7 wide, which must be even"),
        ({"hidden_size": 36}, "the heads are 9 wide, which must be even"),
        ({"hidden_size": 34}, "num_attention_heads must divide hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 1]}}, "mrope_section must sum to 4"),
        (
            {"hidden_size": None, "vocab_size": "96"},
            "text.hidden_size is missing; .*text.vocab_size must be of type int",
        ),
    ],
)
def test_configurations_that_are_not_supported(tmp_path, changes, sentence):
    values = SIZES | {"hidden_act": "silu", "rope_theta": 1e4, "rms_norm_eps": 1e-5} | changes
    (tmp_path / "config.json").write_text(json.dumps({"text": values}))
    with pytest.raises(UserError, match=sentence), reading(tmp_path) as section:
        decoder_config(section.section("text"), tied=True, attention_bias=False)


def test_absent_head_counts_follow_from_the_others(tmp_path):
    values = SIZES | {"hidden_act": "silu", "rope_theta": 1e4, "rms_norm_eps": 1e-5}
    del values["num_key_value_heads"]
    section = Section(tmp_path / "config.json", values)
    config = decoder_config(section, tied=True, attention_bias=False)
    section.check()
    assert (config.num_key_value_heads, config.head_dim) == (4, 8)


def test_models_that_are_not_supported(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="'gpt2', which is not supported; supported are .*llama, qwen2"):
        open_source(tmp_path)

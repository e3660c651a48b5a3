"""SmolAV in Hugging Face's format: its trained tensors for us, its language model for transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import acckv_jax as kv
from models.hf.config import Section
from models.hf.decoder import decoder_config
from models.over_decoder import decoder_of
from models.registry import open_source
from models.smolav.params import load_smolav
from tests.tolerances import PUBLISHED
from tests.train.exports.tiny import CONFIG, write_llama
from train.export import main


def test_a_written_llama_is_read_by_transformers(tmp_path):
    write_llama(tmp_path / "a")
    section = Section(tmp_path / "a" / "config.json", json.loads((tmp_path / "a" / "config.json").read_text()))
    assert decoder_config(section, tied=False, attention_bias=False) == CONFIG
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(told.values()) and type(model).__name__ == "LlamaForCausalLM"
    assert model.generation_config.eos_token_id == [5, 11]


@pytest.mark.complete
def test_smolav(tmp_path):
    out = tmp_path / "smolav"
    assert main(["--model", "smolav", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "params.safetensors", "decoder"}
    (config, _, ours), (again, _, theirs) = load_smolav(), load_smolav(out)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    _, params = open_source(out / "decoder").load(jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, ours["decoder"])

    tokenizer = AutoTokenizer.from_pretrained(out / "decoder")
    ids = tokenizer("<|im_start|>user\nWhich number is spoken last?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(out / "decoder").eval()
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == model.config.eos_token_id
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    prompt = kv.make_prompt(np.zeros((1, len(ids)), int))
    decoder = decoder_of(config.decoder)
    logits, _ = kv.jitted.prefill(decoder, params, np.array([ids], np.int32), prompt, kv.Full())
    np.testing.assert_allclose(logits[0], expected, **PUBLISHED)

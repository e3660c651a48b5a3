"""`python -m train.export --model`: a checkpoint written anew, and every mistake in one sentence."""

import json
import resource

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from models.files import whole_folder
from models.hf.checkpoint import open_checkpoint
from models.hf.export import save_params
from models.hf.tensors import norm
from train.export import main

CONFIG = Qwen2Config(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
)
TOKENS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs") / "tiny"
    torch.manual_seed(0)
    Qwen2ForCausalLM(CONFIG).save_pretrained(folder)
    (folder / "vocab.txt").write_text("a\n")
    (folder / "notes.md").write_text("not copied")
    return folder


def load(folder):
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits.float().numpy()


def test_written_anew(model, tmp_path, capsys):
    assert main(["--model", str(model), "--out", str(tmp_path / "a"), "--max-shard-gb", "5e-6"]) == 0
    assert capsys.readouterr().out == f"wrote {model} to {tmp_path / 'a'}\n"
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [file for file in files if not file.endswith(".safetensors")] == [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "vocab.txt",
    ]
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert len(files) - 4 == len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in load(model).parameters())
    np.testing.assert_array_equal(logits(load(tmp_path / "a")), logits(load(model)))


def test_another_type(model, tmp_path):
    assert main(["--model", str(model), "--out", str(tmp_path / "a"), "--dtype", "bf16"]) == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {stored.dtype for stored in open_checkpoint(tmp_path / "a").tensors.values()} == {np.dtype(jnp.bfloat16)}
    written = load(tmp_path / "a")
    assert written.dtype == torch.bfloat16
    np.testing.assert_array_equal(logits(written), logits(load(model).bfloat16()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--out", "{out}"], "There is no folder"),
        (["--out", "{out}", "--max-shard-gb", "0"], "--max-shard-gb must be above 0"),
        ([], "--model needs --out"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, sentence):
    arguments = [argument.format(out=tmp_path / "new") for argument in arguments]
    assert main(["--model", str(tmp_path / "absent"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_folders_in_use_are_left_alone(model, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    for out, sentence in ((tmp_path / "full", "exists already"), (tmp_path / "no" / "a", "There is no folder")):
        assert main(["--model", str(model), "--out", str(out)]) == 2
        assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine"]


def test_nothing_half_written(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a") as draft:
        (draft / "part").write_text("x")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError):
        save_params(tmp_path / "a", {}, norm("n", ("n",)), {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_folder(model, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        assert main(["--model", str(model), "--out", str(tmp_path / "a")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'a'} cannot be written (File too large); make room")
    assert not list(tmp_path.iterdir())


def test_tensors_of_several_types(tmp_path, capsys):
    mixed = Qwen2ForCausalLM(CONFIG)
    mixed.model.norm.bfloat16()
    mixed.save_pretrained(tmp_path / "mixed")
    assert main(["--model", str(tmp_path / "mixed"), "--out", str(tmp_path / "a")]) == 2
    assert "of several types (bfloat16, float32); say which" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "mixed"), "--out", str(tmp_path / "a"), "--dtype", "fp32"]) == 0

"""`--to orbax`: read again by name, onto another mesh, and back into safetensors; damage in one sentence."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

import models
from models.errors import UserError
from models.files import whole_folder
from models.layers.init import FastRngs
from models.orbax import FOLDER, save_orbax
from models.registry import open_source
from models.smolav.config import SmolAVConfig
from models.smolav.modeling import SmolAV
from models.smolav.params import load_smolav
from tests.models.parameters import random_params
from tests.models.qwen2_5_omni.checkpoints import write_omni
from tests.models.qwen2_5_omni.vocabulary import write_tokenizer
from tests.models.videollama2.cases import MODEL
from tests.models.videollama2.checkpoints import write_checkpoint
from tests.train.exports.tiny import write_llama
from train.export import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def exported(folder):
    out = folder.with_name("orbax")
    assert main(["--model", str(folder), "--to", "orbax", "--out", str(out)]) == 0
    return out


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_read_again_and_back(folder, exported, tmp_path, capsys):
    kept = {"params", "config.json", "generation_config.json"}
    assert {path.name for path in exported.iterdir()} == kept
    again = open_source(exported)
    assert again.dtype() == np.float32
    equal(again.load(jnp.float32)[1], open_source(folder).load(jnp.float32)[1])
    assert main(["--model", str(exported), "--out", str(tmp_path / "hf")]) == 0
    equal(load_file(tmp_path / "hf" / "model.safetensors"), load_file(folder / "model.safetensors"))


def test_another_type(folder, tmp_path):
    assert main(["--model", str(folder), "--to", "orbax", "--dtype", "bf16", "--out", str(tmp_path / "a")]) == 0
    assert open_source(tmp_path / "a").dtype() == jnp.bfloat16
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    half = open_source(folder).load(jnp.bfloat16)[1]
    equal(open_source(tmp_path / "a").load(jnp.bfloat16)[1], half)


def test_onto_another_mesh(folder, exported):
    whole = open_source(folder).load(jnp.float32)[1]
    with jax.set_mesh(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))):
        placed = open_source(exported).load(jnp.float32)[1]
    assert placed["layers"]["mlp"]["up"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")
    assert len(placed["norm"]["scale"].sharding.device_set) == 8
    equal(whole, placed)


def test_smolav_restored(tmp_path):
    config = SmolAVConfig.tiny()
    _, params = random_params(lambda: SmolAV(config, rngs=FastRngs(0)))
    save_orbax(tmp_path, params)
    values = {**config.__dict__, "decoder": config.decoder.__dict__}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found, _, again = load_smolav(tmp_path)
    assert found == config
    equal(again, params)


def test_other_parameters_are_named(folder, exported, tmp_path, capsys):
    (tmp_path / FOLDER).symlink_to(exported / FOLDER)
    config = json.loads((exported / "config.json").read_text())
    changed = config | {"intermediate_size": 40, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert main(["--model", str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert "head.kernel is unknown" in said and "layers.mlp.down.kernel is [2, 48, 32], not [2, 40, 32]" in said


def test_damage_is_named(folder, tmp_path, capfd):
    assert main(["--model", str(folder), "--to", "orbax", "--out", str(tmp_path / "a")]) == 0
    parts = [path for path in (tmp_path / "a" / FOLDER).rglob("d/*") if path.is_file()]
    largest = max(parts, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    capfd.readouterr()
    assert main(["--model", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 2
    said = capfd.readouterr().err
    assert "is damaged" in said and said.count("\n") == 1
    (tmp_path / "a" / FOLDER / "_METADATA").unlink()
    assert main(["--model", str(tmp_path / "a"), "--out", str(tmp_path / "b")]) == 2
    assert "is damaged" in capfd.readouterr().err and not (tmp_path / "b").exists()


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """A limit of file size, which acts as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_plain(draft):
    (draft / "a.bin").write_bytes(bytes(100_000))


def write_safetensors(draft):
    save_file({"x": np.ones(100_000, np.float32)}, draft / "x.safetensors")


def write_orbax(draft):
    save_orbax(draft, {"x": jax.device_put(np.random.default_rng(0).random(100_000, np.float32))})


@pytest.mark.parametrize("write", [write_plain, write_safetensors, write_orbax])
def test_a_full_disk_leaves_nothing(write, tmp_path, capfd):
    with pytest.raises(UserError, match="cannot be written .*make room"), whole_folder(tmp_path / "a") as draft:
        with small_files(20_000):
            write(draft)
    assert not list(tmp_path.iterdir()) and not capfd.readouterr().err


@pytest.mark.complete
def test_models_that_read_media(tmp_path):
    """Every family comes back from Orbax, by name, as it was."""
    for name in ("omni", "videollama2"):
        (tmp_path / name).mkdir()
    write_omni(tmp_path / "omni")
    write_checkpoint(tmp_path / "videollama2", MODEL[0], bins=True, vocab_size=151680)
    write_tokenizer(tmp_path / "videollama2", form="tokenizer.json")
    for name in ("omni", "videollama2"):
        out = tmp_path / f"{name}-orbax"
        assert main(["--model", str(tmp_path / name), "--to", "orbax", "--out", str(out)]) == 0
        before, after = models.load(str(tmp_path / name)), models.load(str(out))
        assert after.stop_token_ids == before.stop_token_ids and after.decoder_config == before.decoder_config
        assert flatten_dict(after.all_params).keys() == flatten_dict(before.all_params).keys()
        equal(after.all_params, before.all_params)

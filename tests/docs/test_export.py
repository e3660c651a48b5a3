"""docs/export.md: a checkpoint goes onto a mesh, and a clip is answered by exported programs."""

import shutil

import jax
import numpy as np
import pytest

import acckv_jax as kv
import models
from models.acckv_tau import TAU
from models.registry import open_source
from tests.docs.pages import ROOT, blocks, run
from tests.train.exports.test_stablehlo import run_alone
from tests.train.exports.tiny import CONFIG, write_llama
from train.export import main

ON_A_MESH, BY_ORBAX, PROMPT = blocks("docs/export.md")


def test_onto_a_mesh_and_by_orbax_alone(tmp_path, monkeypatch):
    folder = write_llama(tmp_path / "llama", CONFIG.tiny(num_key_value_heads=4))
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(folder), "--to", "orbax", "--out", "checkpoint"]) == 0
    names = run("docs/export.md", {}, [ON_A_MESH, BY_ORBAX])
    jax.tree.map(np.testing.assert_array_equal, names["tree"], open_source(folder).load(np.float32)[1])
    kernel = names["params"]["layers"]["q"]["kernel"]
    assert kernel.dtype == np.dtype("bfloat16") and kernel.sharding.spec[-1] == "tensor"


@pytest.mark.complete
@pytest.mark.packaging
def test_a_clip(tmp_path, monkeypatch):
    """SmolAV at its real size, by a process without our code."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "models/smolav/demo/demo.mp4", "clip.mp4")
    model = run("docs/export.md", {}, [PROMPT])["model"]
    options = ["--length", "768", "--policy", "acckv_plus", "--budget", "0.2"]
    assert main(["--model", "smolav", "--to", "stablehlo", "--out", "programs", *options]) == 0
    (tokens,) = run_alone(tmp_path / "programs", tmp_path / "prompt.safetensors")
    policy = kv.AccKV.plus(budget=0.2, tau=TAU["smolav"])
    answer = models.answer(model, "clip.mp4", "What is shown second?", policy=policy)
    assert tuple(tokens) == answer.token_ids and answer.text == "cat"

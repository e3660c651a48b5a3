"""Exported programs: their script gives the tokens of `acckv_jax.generate`, without any code of ours."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file, save_file

import acckv_jax as kv
import models
from models.batching import Batch, padded
from models.over_decoder import decoder_of
from models.registry import open_source
from tests.models.qwen2_5_omni.checkpoints import write_omni
from tests.train.exports.tiny import CONFIG, STOP, write_llama
from train.export import main
from train.exports.stablehlo import Program, custom_calls, lowered, prompt_arrays

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "docs" / "run_exported.py"
ALONE = {"jax", "numpy", "safetensors", *sys.stdlib_module_names}
"""What the script may import; jax.export itself needs flatbuffers."""
BLOCKED = """
import runpy, sys
for name in ("acckv_jax", "mergenet_jax", "models", "train", "eval", "flax", "orbax", "chex", "optax", "jaxtyping"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
LENGTH, NEW = 64, 8
MODALITY = np.repeat([0, 1, 2, 0], [4, 30, 20, 6])
POLICIES = {
    "full": [],
    "snapkv": ["--budget", "40"],
    "acckv_plus": ["--budget", "0.5"],
    "quantized(h2o)": ["--budget", "0.5"],
    "evict_every(h2o)": ["--budget", "0.5", "--option", "steps=4"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def pruned(folder):
    """Programs for two platforms."""
    out = folder.with_name("pruned")
    export_to(out, folder, "--policy", "snapkv", *POLICIES["snapkv"], "--platforms", "cpu", "tpu")
    return out


def write_prompt(path: Path, batch: Batch) -> None:
    save_file(prompt_arrays(**batch.arguments()), path)


def prompt_of(rows: int = 1) -> Batch:
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (rows, LENGTH)).astype(np.int32)
    modality = np.tile(np.pad(MODALITY, (0, LENGTH - len(MODALITY))), (rows, 1))
    lengths = len(MODALITY) - 3 * np.arange(rows)
    return Batch(jax.device_put(tokens), kv.make_prompt(modality, lengths), None, None)


def generated(folder: Path, batch: Batch, policy: kv.CachePolicy, stop: tuple[int, ...] = STOP) -> list[list[int]]:
    params = open_source(folder).load(jnp.float32)[1]
    found = kv.generate(
        decoder_of(CONFIG), params, batch.inputs, batch.prompt, policy, max_new_tokens=NEW, stop_token_ids=stop
    )
    return found.tokens.tolist()


def export_to(out: Path, model: Path | str, *options: str) -> dict:
    sizes = [] if "--length" in options else ["--length", str(LENGTH), "--new-tokens", str(NEW), "--steps", "4"]
    assert main(["--model", str(model), "--to", "stablehlo", "--out", str(out), *sizes, *options]) == 0
    return json.loads((out / "manifest.json").read_text())


def run_here(out: Path, prompt: Path, monkeypatch, capsys) -> list[list[int]]:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(out), str(prompt)])
    capsys.readouterr()
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads(capsys.readouterr().out)


def run_alone(out: Path, prompt: Path) -> list[list[int]]:
    command = [sys.executable, "-c", BLOCKED, str(SCRIPT), str(out), str(prompt)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout)


def test_the_script_imports_nothing_else():
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "jax" in names and {name.split(".")[0] for name in names} <= ALONE


def test_tokens_equal_generate(folder, pruned, tmp_path, monkeypatch, capsys):
    batch = prompt_of()
    write_prompt(tmp_path / "prompt.safetensors", batch)
    found = run_here(pruned, tmp_path / "prompt.safetensors", monkeypatch, capsys)
    assert found == generated(folder, batch, kv.SnapKV(budget=40)) and len(found[0]) == NEW


@pytest.mark.complete
@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"snapkv"}))
def test_tokens_of_other_policies(policy, folder, tmp_path, monkeypatch, capsys):
    manifest = export_to(tmp_path / "out", folder, "--policy", policy, *POLICIES[policy])
    batch = prompt_of()
    write_prompt(tmp_path / "prompt.safetensors", batch)
    found = run_here(tmp_path / "out", tmp_path / "prompt.safetensors", monkeypatch, capsys)
    options = {"steps": 4} if "evict" in policy else {}
    own = kv.make_policy(policy, budget=1.0 if policy == "full" else 0.5, **options)
    assert found == generated(folder, batch, own)
    assert len(found[0]) == NEW and manifest["slots"] == [LENGTH if policy == "full" else 32] * 2


@pytest.mark.complete
def test_ragged_rows_that_end_at_different_times(folder, tmp_path, monkeypatch, capsys):
    export_to(tmp_path / "out", folder, "--batch", "3", "--policy", "knorm", "--budget", "0.5")
    batch = prompt_of(3)
    write_prompt(tmp_path / "prompt.safetensors", batch)
    free = generated(folder, batch, kv.Knorm(budget=0.5), stop=())
    stop = free[1][3]  # the second row ends at its fourth token
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["stop_token_ids"] == list(STOP)
    ended = write_llama(tmp_path / "ended")
    (ended / "generation_config.json").write_text(json.dumps({"eos_token_id": stop}))
    export_to(tmp_path / "again", ended, "--batch", "3", "--policy", "knorm", "--budget", "0.5")
    found = run_here(tmp_path / "again", tmp_path / "prompt.safetensors", monkeypatch, capsys)
    assert found == generated(folder, batch, kv.Knorm(budget=0.5), stop=(stop,))
    assert found[1][3:] == [stop] * (len(found[1]) - 3)


def test_every_input_has_its_source(pruned):
    """And the files hold what the manifest says, for processors that are not here as well."""
    manifest = json.loads((pruned / "manifest.json").read_text())
    weights = load_file(pruned / "weights.safetensors")
    known = {name: (list(x.shape), x.dtype.name) for name, x in weights.items()}
    known |= {name: (list(x.shape), x.dtype.name) for name, x in prompt_arrays(**prompt_of().arguments()).items()}
    known |= {"token": ([1], "int32"), "active": ([1], "bool")}
    for name, program in manifest["programs"].items():
        assert all(known[one["name"]] == (one["shape"], one["dtype"]) for one in program["inputs"])
        known |= {one["name"]: (one["shape"], one["dtype"]) for one in program["outputs"]}
        for platform, file in program["files"].items():
            found = export.deserialize(bytearray((pruned / file).read_bytes()))
            assert found.calling_convention_version == program["calling_convention_version"]
            assert found.platforms == (platform,) and file == f"{name}.{platform}.stablehlo"
            for avals, listed in ((found.in_avals, program["inputs"]), (found.out_avals, program["outputs"])):
                assert [(list(x.shape), x.dtype.name) for x in avals] == [(x["shape"], x["dtype"]) for x in listed]
    weight_names = [one["name"] for one in manifest["programs"]["prefill"]["inputs"] if "params." in one["name"]]
    assert sorted(weight_names) == sorted(weights) and "params.layers.q.kernel" in weights


@pytest.mark.complete
def test_kernels_of_tpus_are_named(tmp_path):
    wide = write_llama(tmp_path / "wide", CONFIG.tiny(head_dim=64))
    manifest = export_to(tmp_path / "out", wide, "--length", "256", "--platforms", "tpu", "cuda", "--policy", "h2o")
    calls = {key: program["custom_calls"] for key, program in manifest["programs"].items()}
    assert calls["prefill"]["tpu"] == {"guaranteed": ["tpu_custom_call"], "not_guaranteed": []}
    assert calls["prefill"]["cuda"] == calls["decode"]["tpu"] == {"guaranteed": [], "not_guaranteed": []}


def test_custom_calls_without_a_guarantee_are_named():
    def run(x):
        return {"y": jax.ffi.ffi_call("somebodys_kernel", jax.ShapeDtypeStruct((4,), jnp.float32))(x)}

    exported, unstable = lowered(Program(run, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}), "cpu")
    assert unstable == {"somebodys_kernel"} == custom_calls(exported.mlir_module())


def test_other_failures_of_lowering_stay():
    def run(x):
        raise ValueError("custom calls are not the reason")

    with pytest.raises(ValueError, match="not the reason"):
        lowered(Program(run, {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}), "cpu")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "absent"], "There is no folder absent; give smolav, or the folder of a checkpoint"),
        (["--policy", "best"], "unknown policy 'best'"),
        (["--policy", "snapkv", "--budget", "8"], "Policy snapkv: budget 8 keeps 8 of the 64 prompt tokens"),
        (["--policy", "snapkv", "--budget", "much"], "Budget 'much' is no number"),
        (["--policy", "snapkv", "--option", "size=3"], "has no option 'size'"),
        (["--budget", "0.2"], "--policy full keeps the whole cache"),
        (["--steps", "65"], "--steps 65 is more than --new-tokens 64"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--length", "500"], "564 tokens, but the model reads at most 512"),
        (["--to", "orbax"], "add --model and --to stablehlo"),
        (["--max-shard-gb", "1"], "--max-shard-gb is of --to hf"),
        (["--out", "{folder}"], "exists already"),
        (["--out", "/proc/new"], "/proc/new cannot be written"),
    ],
)
def test_mistakes(options, sentence, folder, tmp_path, capsys):
    options = [option.format(folder=folder) for option in options]
    before = ["--model", str(folder), "--to", "stablehlo", "--out", str(tmp_path / "new"), "--length", "64"]
    assert main([*before, *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.complete
@pytest.mark.packaging
def test_a_script_without_our_code(folder, pruned, tmp_path):
    batch = prompt_of()
    write_prompt(tmp_path / "prompt.safetensors", batch)
    found = run_alone(pruned, tmp_path / "prompt.safetensors")
    assert found == generated(folder, batch, kv.SnapKV(budget=40))


@pytest.mark.complete
def test_embeddings_and_positions_of_several_axes(tmp_path, monkeypatch, capsys):
    (tmp_path / "omni").mkdir()
    model = models.load(str(write_omni(tmp_path / "omni")))
    pictures = models.media.clip.Media(np.full((1, 56, 84, 3), 99, np.uint8), None)
    batch = padded([model.encode_media(pictures, "interleaved").then(model.encode_question("What?"))], LENGTH)
    write_prompt(tmp_path / "prompt.safetensors", batch)
    assert batch.positions is not None and "prompt.delta" in load_file(tmp_path / "prompt.safetensors")
    export_to(tmp_path / "out", tmp_path / "omni", "--policy", "knorm", "--budget", "0.5")
    found = run_here(tmp_path / "out", tmp_path / "prompt.safetensors", monkeypatch, capsys)
    arguments = batch.arguments() | {"policy": kv.Knorm(budget=0.5), "stop_token_ids": model.stop_token_ids}
    expected = kv.generate(model.decoder, model.params, **arguments, max_new_tokens=NEW)
    assert found == expected.tokens.tolist()


@pytest.mark.complete
@pytest.mark.packaging
def test_smolav(tmp_path):
    """The full cache at its real size, in a process without our code; tests/docs/test_export.py prunes."""
    model = models.load("smolav")
    text = "Tell me what a fox says to a hen, and then explain how a steam engine works, step by step, and why."
    chat = model.chat
    prompt = model.embed_text([*chat.before, *model.tokenizer.encode(text).ids, *chat.after])
    batch = padded([prompt], LENGTH)
    write_prompt(tmp_path / "prompt.safetensors", batch)
    export_to(tmp_path / "out", "smolav")
    found = run_alone(tmp_path / "out", tmp_path / "prompt.safetensors")
    arguments = batch.arguments() | {"policy": kv.Full(), "stop_token_ids": model.stop_token_ids}
    expected = kv.generate(model.decoder, model.params, **arguments, max_new_tokens=NEW)
    assert found == expected.tokens.tolist()

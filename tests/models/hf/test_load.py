"""Checkpoint folders to parameters: shards, spellings, types, slices for devices, and every error in one sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from models.hf.load import load_params
from models.hf.tensors import Tensor, conv, linear, norm
from models.readers.stored import StoredArray

RNG = np.random.default_rng(0)
TENSORS = (
    linear("a.fc", ("fc",), bias=True)
    | norm("b.norm", ("blocks", 0, "norm"))
    | conv("c.conv", ("conv",), 2)
    | {"d.patch": Tensor(("patch", "kernel"), (1, 0), stored=(8, 3, 2, 2))}
)
FILE = {
    "a.fc.weight": RNG.standard_normal((16, 8)).astype(np.float32),
    "a.fc.bias": RNG.standard_normal(16).astype(np.float32),
    "b.norm.weight": RNG.standard_normal(8).astype(np.float32),
    "c.conv.weight": RNG.standard_normal((8, 4, 3, 2)).astype(np.float32),
    "d.patch": RNG.standard_normal((8, 3, 2, 2)).astype(np.float32),
}
OURS = {
    "fc": {"kernel": FILE["a.fc.weight"].T, "bias": FILE["a.fc.bias"]},
    "blocks": {0: {"norm": {"scale": FILE["b.norm.weight"]}}},
    "conv": {"kernel": FILE["c.conv.weight"].transpose(2, 3, 1, 0)},
    "patch": {"kernel": FILE["d.patch"].reshape(8, 12).T},
}


def shapes(dtype=jnp.float32):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), OURS)


def single(folder, tensors=FILE):
    folder.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    return folder


def sharded(folder, *shards):
    files = {f"model-{i}.safetensors": shard for i, shard in enumerate(shards)}
    for file, shard in files.items():
        save_file({name: np.ascontiguousarray(x) for name, x in shard.items()}, folder / file)
    weight_map = {name: file for file, shard in files.items() for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def halves():
    return dict(list(FILE.items())[:2]), dict(list(FILE.items())[2:])


def equal(params, expected=OURS):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_one_file_and_shards_and_bin(tmp_path):
    equal(load_params(open_checkpoint(single(tmp_path / "one")), TENSORS, shapes()))
    equal(load_params(open_checkpoint(sharded(tmp_path, *halves())), TENSORS, shapes()))
    (tmp_path / "bin").mkdir()
    torch.save({name: torch.tensor(x) for name, x in FILE.items()}, tmp_path / "bin" / "pytorch_model.bin")
    equal(load_params(open_checkpoint(tmp_path / "bin"), TENSORS, shapes()))
    (tmp_path / "bin" / "pytorch_model.bin").rename(tmp_path / "bin" / "one.bin")
    index = {"weight_map": dict.fromkeys(FILE, "one.bin")}
    (tmp_path / "bin" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    equal(load_params(open_checkpoint(tmp_path / "bin"), TENSORS, shapes()))


def test_prefix_may_be_there_or_not(tmp_path):
    mixed = {("thinker." if i % 2 else "") + name: x for i, (name, x) in enumerate(FILE.items())}
    more = {"talker.x": FILE["a.fc.bias"], "thinker.audio.unused": FILE["a.fc.bias"]}
    checkpoint = open_checkpoint(single(tmp_path, mixed | more))
    equal(load_params(checkpoint, TENSORS, shapes(), prefix="thinker.", ignore=("talker.*", "audio.unused")))


@pytest.mark.parametrize(
    ("stored", "wanted"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")]
)
def test_types_are_converted(tmp_path, stored, wanted):
    checkpoint = open_checkpoint(single(tmp_path, {name: x.astype(jnp.dtype(stored)) for name, x in FILE.items()}))
    params = load_params(checkpoint, TENSORS, shapes(jnp.dtype(wanted)))
    equal(params, jax.tree.map(lambda x: x.astype(jnp.dtype(stored)).astype(jnp.dtype(wanted)), OURS))


def test_parts_beside_the_main_file(tmp_path):
    main, part = halves()
    single(tmp_path, main)
    torch.save({name: torch.tensor(x) for name, x in (part | main).items()}, tmp_path / "audio_tower.bin")
    checkpoint = open_checkpoint(tmp_path, ("audio_tower.bin", "absent.bin"))
    equal(load_params(checkpoint, TENSORS, shapes()))
    torch.save({name: torch.tensor(x) + 1 for name, x in main.items()}, tmp_path / "audio_tower.bin")
    both = "model.safetensors and audio_tower.bin"
    with pytest.raises(UserError, match=rf"2 duplicate: a.fc.weight \(in {both}\), a.fc.bias \(in {both}\)"):
        load_params(open_checkpoint(tmp_path, ("audio_tower.bin",)), TENSORS, shapes())


def test_devices_read_their_slices_only(tmp_path, monkeypatch):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    specs = {
        "fc": {"kernel": PartitionSpec("fsdp", "tensor"), "bias": PartitionSpec("tensor")},
        "blocks": {0: {"norm": {"scale": PartitionSpec()}}},
        "conv": {"kernel": PartitionSpec(None, "fsdp", "tensor", None)},
        "patch": {"kernel": PartitionSpec("tensor", "fsdp")},
    }
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes(), shardings)
    view, sizes = StoredArray.view, []

    def counted(self, *args):
        values = view(self, *args)
        sizes.append(values.size)
        return values

    monkeypatch.setattr(StoredArray, "view", counted)
    params = load_params(open_checkpoint(single(tmp_path)), TENSORS, placed)
    equal(params)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    # kernel, patch and convolution in 8 pieces, bias in 4 (each read once for its 2 devices), scale once
    assert sorted(sizes) == sorted([16] * 8 + [4] * 4 + [8] + [24] * 8 + [12] * 8)


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    tensors = {name: x for name, x in FILE.items() if name != "b.norm.weight"}
    tensors |= {
        "a.fc.weight": FILE["a.fc.weight"].T,
        "a.fc.bias": np.arange(16),
        "thinker.d.patch": FILE["d.patch"],
        "z": FILE["a.fc.bias"],
    }
    with pytest.raises(UserError) as told:
        load_params(open_checkpoint(single(tmp_path, tensors)), TENSORS, shapes(), prefix="thinker.")
    assert str(told.value) == (
        f"The tensors in {tmp_path} do not fit its config.json: 1 unknown: z; 1 missing: thinker.b.norm.weight; "
        "1 duplicate: d.patch (with and without 'thinker.'); 1 of a wrong shape: a.fc.weight is [8, 16], not [16, 8]; "
        "1 not of a floating type (float32, float16, bfloat16): a.fc.bias is int64."
    )


def test_copies_are_compared(tmp_path, monkeypatch):
    copies, copy = {"x.*.weight": "a.fc.weight"}, FILE["a.fc.weight"]
    monkeypatch.setattr("models.readers.stored.COMPARED", 50)  # of 128 values

    def load(**more):
        more = {name.replace("_", "."): x for name, x in more.items()}
        return load_params(open_checkpoint(single(tmp_path, FILE | more)), TENSORS, shapes(), copies=copies)

    equal(load(x_1_weight=copy, x_2_weight=copy))
    last = copy.copy()
    last[-1, -1] += 1
    more = {"x_1_weight": last, "x_2_weight": copy.T, "x_3_weight": copy.astype(np.float16), "x_4_weight": copy}
    different = ", ".join(rf"x.{i}.weight \(a.fc.weight\)" for i in (1, 2, 3))
    with pytest.raises(UserError, match=f": 3 different from the tensor that it should repeat: {different}[.]$"):
        load(**more)


def test_long_lists_are_cut(tmp_path):
    checkpoint = open_checkpoint(single(tmp_path, FILE | {f"x{i:02d}": FILE["a.fc.bias"] for i in range(33)}))
    with pytest.raises(UserError, match="33 unknown: x00, .*, x19, and 13 more[.]"):
        load_params(checkpoint, TENSORS, shapes())


def test_names_must_cover_the_parameters(tmp_path):
    with pytest.raises(ValueError, match="name each parameter"):
        load_params(open_checkpoint(single(tmp_path)), TENSORS, shapes() | {"more": shapes()["fc"]})


def test_buffers_of_old_files_are_not_read(tmp_path):
    old = FILE | {"model.layers.0.self_attn.rotary_emb.inv_freq": FILE["a.fc.bias"], "e.position_ids": np.arange(3)}
    equal(load_params(open_checkpoint(single(tmp_path, old)), TENSORS, shapes()))


def test_folders_that_are_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is no checkpoint: it has none of model.safetensors, "):
        open_checkpoint(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for damaged, sentence in (
        ("{", "is not readable JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "has no weight_map from tensors to files"),
        ('{"weight_map": [1]}', "has no weight_map from tensors to files"),
        ('{"weight_map": {"a": 3}}', "has no weight_map from tensors to files"),
        ('{"weight_map": {"a": "../b"}}', "names a shard that is no file of its folder"),
    ):
        index.write_text(damaged)
        with pytest.raises(UserError, match=sentence):
            open_checkpoint(tmp_path)


def test_a_pointer_of_git_lfs_is_no_checkpoint(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    for name in ("model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(pointer)
        with pytest.raises(UserError, match="is a pointer of Git LFS .* `git lfs pull`"):
            open_checkpoint(folder)


def test_shards_that_do_not_fit_their_index(tmp_path):
    first, second = halves()
    sharded(tmp_path, first, second, {"z": FILE["a.fc.bias"]})
    for number in (0, 2):
        (tmp_path / f"model-{number}.safetensors").rename(tmp_path / f"away-{number}")
    with pytest.raises(UserError, match="lacks shards that its index names: model-0.safetensors, model-2.safetensors"):
        open_checkpoint(tmp_path)
    sharded(tmp_path, first, second | {"a.fc.bias": FILE["a.fc.bias"], "z": FILE["a.fc.bias"]})
    duplicate = r"1 unknown: z; 1 duplicate: a.fc.bias \(in model-0.safetensors and model-1.safetensors\)"
    with pytest.raises(UserError, match=duplicate):
        load_params(open_checkpoint(tmp_path), TENSORS, shapes())
    sharded(tmp_path, first, second)
    file = tmp_path / "model-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-1.safetensors is not a readable safetensors file"):
        open_checkpoint(tmp_path)

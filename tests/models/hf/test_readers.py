"""Lazy readers of safetensors and of torch.save's zip format, against the packages that write them."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from models.errors import UserError
from models.readers.safe_tensors import read_safetensors
from models.readers.torch_zip import read_torch_zip

BASE = torch.arange(48, dtype=torch.float32).reshape(4, 12)
STATE = OrderedDict(
    base=BASE,
    turned=BASE.T,  # shares its storage
    part=BASE[1:3, ::2],
    brain=BASE.bfloat16(),
    half=torch.linspace(-1, 1, 5).half(),
    weight=torch.nn.Parameter(torch.ones(2, 3)),
    count=torch.tensor(3),
    empty=torch.zeros(0, 2),
)


def values(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.fixture(scope="module")
def bin_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "small.bin"
    torch.save(STATE, path)
    return path


@pytest.fixture(scope="module")
def safe_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("safe") / "small.safetensors"
    arrays = {name: np.array(values(tensor), order="C") for name, tensor in STATE.items()}
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_equals_the_writer(kind, bin_path, safe_path):
    read = read_torch_zip(bin_path) if kind == "bin" else read_safetensors(safe_path)
    assert sorted(read) == sorted(STATE)
    for name, tensor in STATE.items():
        expected, stored = values(tensor), read[name]
        assert (stored.shape, stored.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(stored.read(), expected, err_msg=name)
        assert stored.read().flags.writeable  # not the file itself
        if expected.ndim == 2:
            index = (slice(1, 3), slice(None, None, 2))
            np.testing.assert_array_equal(stored.view(index), expected[index], err_msg=name)
            np.testing.assert_array_equal(stored.view((), (expected.size,)), expected.reshape(-1), err_msg=name)


def cuts(path):
    data = path.read_bytes()
    return [data[:n] for n in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]]


def test_truncated_files_give_one_sentence(bin_path, safe_path, tmp_path):
    for source, read in ((bin_path, read_torch_zip), (safe_path, read_safetensors)):
        for data in cuts(source):
            (tmp_path / "cut").write_bytes(data)
            with pytest.raises(UserError, match="cut is not a readable .*copy it again"):
                read(tmp_path / "cut")


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"[]", "not a readable"),
        (b"{not json", "not a readable"),
        (b"\xff\xff", "not a readable"),
        (b'{"a": 3}', "not a readable"),
        (b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}', "a is of type F4, where one of F64"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "does not fill its 8 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "negative"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "77 bytes where its header asks for 73"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "overlap or leave gaps"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}', "overlap or leave gaps"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}', "bytes where its header asks for 82"),
    ],
)
def test_damaged_safetensors(tmp_path, header, sentence):
    (tmp_path / "bad").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match=sentence):
        read_safetensors(tmp_path / "bad")


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def archive(path, state, **members):
    """As torch.save lays it out, with `state` pickled plainly."""
    with zipfile.ZipFile(path, "w", members.pop("compression", zipfile.ZIP_STORED)) as out:
        out.writestr("a/data.pkl", state if isinstance(state, bytes) else pickle.dumps(state, protocol=2))
        for name, data in members.items():
            out.writestr(f"a/{name}", data)
    return path


def test_zip_runs_no_code(tmp_path):
    with pytest.raises(UserError, match="which a state dict of tensors does not need"):
        read_torch_zip(archive(tmp_path / "bad.bin", {"a": Attack(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


def test_zip_with_other_contents(tmp_path, bin_path, safe_path):
    with pytest.raises(UserError, match="'cfg' is none"):
        read_torch_zip(archive(tmp_path / "dict.bin", {"cfg": {"layers": 12}}))
    with pytest.raises(UserError, match="more than a dictionary"):
        read_torch_zip(archive(tmp_path / "list.bin", [1]))
    with pytest.raises(UserError, match="big-endian"):
        read_torch_zip(archive(tmp_path / "big.bin", {}, byteorder=b"big"))
    with pytest.raises(UserError, match="data.pkl"):
        with zipfile.ZipFile(tmp_path / "none.bin", "w") as out:
            out.writestr("a/other", b"")
        read_torch_zip(tmp_path / "none.bin")
    torch.save(dict(STATE), tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "legacy.bin", safe_path):
        with pytest.raises(UserError, match="save it anew with torch.save"):
            read_torch_zip(path)


def test_zip_tensor_beyond_its_storage(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(40, 40)}, buffer)
    with zipfile.ZipFile(buffer) as source:
        data = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    pkl = data["data.pkl"]
    assert pkl.count(b"K(K(\x86") == 1  # the shape (40, 40)
    larger = pkl.replace(b"K(K(\x86", b"K(K)\x86")
    for state, extra, sentence in (
        (larger, {"data/0": data["data/0"]}, "beyond its storage"),
        (pkl, {"data/0": data["data/0"][:-4]}, "not of the size"),
        (pkl, {"data/0": data["data/0"], "compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        (pkl, {}, "data/0"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_torch_zip(archive(tmp_path / "a.bin", state, **extra))

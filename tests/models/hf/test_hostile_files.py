"""Files made to do harm: each is refused in a sentence, changes no object of the process, and takes little memory."""

import json
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from models.hf.config import read_config
from models.readers import torch_pickle
from models.readers.legacy_pickle import MAGIC, read_legacy_state_dict
from models.readers.safe_tensors import read_safetensors
from models.readers.torch_zip import read_torch_zip
from tests.tiers import quick_only

DEEP = 100_000


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integers(*values):
    return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"


def storage(kind=name("torch", "FloatStorage"), key="0", length=4):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + integers(length)[1:-1] + b"tQ"


def tensor(of, shape=(4,), strides=(1,), offset=0):
    view = of + integers(offset)[1:-1] + integers(*shape) + integers(*strides)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + view + b"tR"


def state(before=b"", **tensors):
    return b"\x80\x02" + before + b"}(" + b"".join(text(key) + made for key, made in tensors.items()) + b"u."


def archive(path, data, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("a/data.pkl", data)
        for key, content in {"data/0": np.arange(4, dtype="<f4").tobytes(), **members}.items():
            out.writestr(f"a/{key}", content)
    return path


def refused(read, path, sentence="is not a readable"):
    """Asserts that a file is refused, in one short line and within 100 MB."""
    tracemalloc.start()
    with pytest.raises(UserError, match=sentence) as told:
        read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000
    assert str(path) in str(told.value) and len(str(told.value)) < 600 and "\n" not in str(told.value)


def test_the_parts_of_these_files_are_right(tmp_path):
    read = read_torch_zip(archive(tmp_path / "a.bin", state(a=tensor(storage()), b=tensor(storage(), (2,), (2,), 1))))
    np.testing.assert_array_equal(read["a"].read(), np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(read["b"].read(), np.array([1, 3], np.float32))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_values_are_those_of_pickle(protocol):
    value = {"a": [1, -1, 2**40, True, None], "b": (), "c": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 5: 2.5, "é": {}}
    value["d"] = value["c"]  # from the memo
    data = pickle.dumps(value, protocol)
    assert torch_pickle.unpickle(data + b"more") == (value, len(data))
    named = OrderedDict(a=1)
    named._metadata = {"version": 1}  # state dicts have this attribute
    assert torch_pickle.unpickle(pickle.dumps(named, protocol))[0] == {"a": 1}


@pytest.mark.parametrize("kind", [text("O"), text("V0"), text("<f4"), b"]", b"N", name("collections", "OrderedDict")])
def test_storages_are_of_the_known_types(tmp_path, kind):
    refused(read_torch_zip, archive(tmp_path / "a.bin", state(a=tensor(storage(kind)))), "a storage has no type")


VIEW = tensor(storage())
SLOTS = b"(N}(" + text("offset") + b"K\x01" + text("__name__") + text("x") + text("__defaults__") + b")utb"
TARGETS = {
    "a storage's type": name("torch", "BFloat16Storage"),
    "OrderedDict": name("collections", "OrderedDict"),
    "a function": name("torch._utils", "_rebuild_tensor_v2"),
    "another function": name("torch._utils", "_rebuild_parameter"),
    "a storage": storage(),
    "a tensor": VIEW,
    "a string": text("x"),
    "a list": b"]",
}


@pytest.mark.parametrize(
    "change", [SLOTS, b"}" + text("shape") + b")sb", b"(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffK\x01K\x00tb"]
)
@pytest.mark.parametrize("target", TARGETS)
def test_no_object_is_changed(tmp_path, target, change):
    kinds = {key: (kind.str, kind.itemsize) for key, kind in torch_pickle.STORAGES.items()}
    functions = {key: (made.__name__, made.__defaults__) for key, made in torch_pickle.FUNCTIONS.items()}
    data = state(TARGETS[target] + change + b"0", a=VIEW)
    refused(read_torch_zip, archive(tmp_path / "a.bin", data), "it sets attributes of what is no dictionary")
    assert {key: (kind.str, kind.itemsize) for key, kind in torch_pickle.STORAGES.items()} == kinds
    assert {key: (made.__name__, made.__defaults__) for key, made in torch_pickle.FUNCTIONS.items()} == functions
    assert np.ones(3, ml_dtypes.bfloat16).tobytes() == b"\x80\x3f" * 3


PICKLES = {
    "memo 2^27": b"\x80\x02Nr" + struct.pack("<I", 2**27) + b"0].",
    "memo 2^32": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"0].",
    "string of 2^50 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x",
    "bytes of 2^50": b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x",
    "bytes of 2^64": b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"x",
    "deep tuple": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "deep tuple as a key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "deep tuple as a storage": b"\x80\x02" + tensor(storage(b")" + b"\x85" * DEEP)) + b".",
    "deep tuple as a shape": state(
        a=name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + b"K\x00)" + b"\x85" * DEEP + b")tR"
    ),
    "list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "nothing on the stack": b"\x80\x020.",
    "no mark": b"\x80\x02t.",
    "call of a list": b"\x80\x02])R.",
    "call of a tensor": state(a=VIEW + b")R"),
    "tensor of no storage": state(a=tensor(b"N")),
    "list as a key": b"\x80\x02}]K\x01s.",
    "items of a tuple": b"\x80\x02)K\x01a.",
    "items of a string": b"\x80\x02" + text("x") + b"K\x01K\x01s.",
}


@pytest.mark.parametrize("kind", quick_only(PICKLES, [k for k in PICKLES if not k.startswith("deep tuple ")]))
def test_pickles(tmp_path, kind):
    refused(read_torch_zip, archive(tmp_path / "a.bin", PICKLES[kind]), "is not a readable PyTorch state dict")
    (tmp_path / "a.pth").write_bytes(PICKLES[kind])
    refused(read_legacy_state_dict, tmp_path / "a.pth", "is not a readable legacy PyTorch state dict")


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (tensor(storage(), (2**30, 2**30, 2**20), (0, 0, 0)), "too large"),
        (tensor(storage(), (2**40,), (0,)), "beyond its storage"),
        (tensor(storage(), (2**62, 2**62, 0), (0, 0, 0)), "too large"),
        (tensor(storage(), (2**64, 0), (0, 0)), "negative, too large"),
        (tensor(storage(), (2,), (-1,)), "negative"),
        (tensor(storage(), offset=-1), "negative"),
        (tensor(storage(), offset=1), "beyond its storage"),
        (tensor(storage(), (2, 2), (1,)), "not a readable"),
        (tensor(storage(), (1,) * 40, (1,) * 40), "more than 32 axes"),
        (tensor(storage(length=-4)), "negative"),
    ],
)
def test_tensors(tmp_path, view, sentence):
    refused(read_torch_zip, archive(tmp_path / "a.bin", state(a=view)), sentence)


def test_archives(tmp_path):
    good, large = state(a=VIEW), b"\x80\x02" + b"X" + struct.pack("<I", 50_000_000) + bytes(50_000_000) + b"0]."
    path = tmp_path / "a.bin"
    refused(read_torch_zip, archive(path, large, zipfile.ZIP_DEFLATED), "data.pkl is compressed")
    refused(read_torch_zip, archive(path, large[:5_000_000]), "data.pkl is larger than 4,194,304 bytes")
    refused(read_torch_zip, archive(path, good, byteorder=bytes(5_000_000)), "byteorder is larger than")
    longer = state(a=tensor(storage(length=2**28), (2**28,)))
    data = archive(path, longer).read_bytes()
    entry = data.rindex(b"PK\x01\x02")  # of data/0 in the directory: its sizes are at 20 and 24
    path.write_bytes(data[: entry + 20] + struct.pack("<2I", 2**30, 2**30) + data[entry + 28 :])
    refused(read_torch_zip, path)
    data = archive(path, good).read_bytes()
    for sign, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(sign) + flags
        data = data[:at] + b"\x01" + data[at + 1 :]
    path.write_bytes(data)
    refused(read_torch_zip, path, "encrypted")


def legacy(path, data, keys, content):
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, {})]
    path.write_bytes(b"".join([*parts, data, pickle.dumps(keys, protocol=2), content]))
    return path


def test_legacy_storages(tmp_path):
    both = state(a=tensor(storage(length=8), (8,)), b=tensor(storage(length=2), (2,)))
    path = legacy(tmp_path / "a.pth", both, ["0"], struct.pack("<q", 2) + bytes(64))
    refused(read_legacy_state_dict, path, "the storage 0 is of several types or lengths")
    for keys in (["1"], [[]], 3, []):
        path = legacy(path, state(a=VIEW), keys, struct.pack("<q", 4) + bytes(16))
        refused(read_legacy_state_dict, path)
    path = legacy(path, state(a=VIEW), ["0"], struct.pack("<q", 4) + bytes(12))
    refused(read_legacy_state_dict, path, "it ends too early")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"shape": [2.0]}, "no integer"),
        ({"shape": [True, 2]}, "no integer"),
        ({"shape": [10**400, 0], "data_offsets": [0, 0]}, "too large"),
        ({"shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}, "too large"),
        ({"shape": "ab"}, "no integer"),
        ({"data_offsets": [0.0, 8.0]}, "no integer"),
        ({"dtype": ["F32"]}, "not a readable"),
    ],
)
def test_headers_of_safetensors(tmp_path, entry, sentence):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refused(read_safetensors, tmp_path / "a", sentence)


def test_deep_json(tmp_path):
    for content in (b"[" * DEEP, b'{"a":' * DEEP):
        (tmp_path / "a").write_bytes(struct.pack("<Q", DEEP) + content)
        refused(read_safetensors, tmp_path / "a", "recursion depth")
        (index := tmp_path / "model.safetensors.index.json").write_bytes(content)
        refused(lambda path: open_checkpoint(path.parent), index, "recursion depth")
        (config := tmp_path / "config.json").write_bytes(content)
        refused(lambda path: read_config(path.parent), config, "recursion depth")

"""Readers against other writers of the same formats: the gguf package, torch.save, and the layout written by hand."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from models.errors import UserError
from models.readers.ctranslate2 import read_ctranslate2
from models.readers.gguf import read_gguf, read_gguf_metadata
from models.readers.legacy_pickle import read_legacy_state_dict

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.fraction", 0.25)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "naïve Ġ")
    writer.add_array("a.words", ["one", "", "zwölf"])
    writer.add_array("a.kinds", [1, -3, 4])
    for name, kind in (("f32", "F32"), ("f16", "F16"), ("q4_1", "Q4_1"), ("q8_0", "Q8_0")):
        values = RANDOM.standard_normal((3, 5, 64)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_equals_the_gguf_package(gguf_path: Path) -> None:
    metadata, tensors = read_gguf(gguf_path)
    reference = gguf.GGUFReader(gguf_path)
    assert len(tensors) == len(reference.tensors) == 4
    for tensor in reference.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(3, 5, 64)
        assert tensors[tensor.name].dtype == np.float32
        np.testing.assert_array_equal(tensors[tensor.name], expected, err_msg=tensor.name)
    for key, value in metadata.items():
        assert value == reference.fields[key].contents(), key
    assert metadata["a.words"] == ["one", "", "zwölf"] and read_gguf_metadata(gguf_path) == metadata


def test_gguf_tensor_type_that_is_not_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "q5.gguf", "llama")
    kind = gguf.GGMLQuantizationType.Q5_0
    writer.add_tensor("odd", gguf.quants.quantize(np.ones((2, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="odd is of type 6"):
        read_gguf(tmp_path / "q5.gguf")


@pytest.fixture(scope="module")
def legacy_path(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = OrderedDict(
        base=base,
        turned=base.T,  # shares its storage
        part=base[1:3, ::2],
        half=torch.linspace(-1, 1, 5).half(),
        count=torch.tensor(3),
        empty=torch.zeros(0, 2),
    )
    path = tmp_path_factory.mktemp("legacy") / "small.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path, state


def test_legacy_state_dict_equals_torch(legacy_path: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = legacy_path
    read = read_legacy_state_dict(path)
    assert list(read) == list(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(read[name], tensor.numpy(), err_msg=name)
        assert read[name].dtype == tensor.numpy().dtype


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("place", range(4))
def test_legacy_pickle_runs_no_code(tmp_path: Path, place: int) -> None:
    parts: list[object] = [0x1950A86A20F9469CFC6C, 1001, {}, {}, []]
    parts[place] = Attack(tmp_path / "ran")
    (tmp_path / "bad.pth").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(UserError, match="which a state dict of tensors does not need"):
        read_legacy_state_dict(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_legacy_tensor_beyond_its_storage(tmp_path: Path) -> None:
    state = {"a": torch.zeros(40, 40)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pth").read_bytes()
    assert data.count(b"K(K(\x86") == 1  # the shape (40, 40)
    (tmp_path / "a.pth").write_bytes(data.replace(b"K(K(\x86", b"K(K)\x86"))
    with pytest.raises(UserError, match="beyond its storage"):
        read_legacy_state_dict(tmp_path / "a.pth")


@pytest.fixture(scope="module")
def ct2_path(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    variables = {
        "encoder/weight": RANDOM.standard_normal((3, 4)).astype(np.float16),
        "encoder/bias": RANDOM.standard_normal(4).astype(np.float32),
        "heads": np.int16(6).reshape(()),
    }

    def text(s: str) -> bytes:
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    codes = {np.dtype(np.float32): 0, np.dtype(np.int16): 2, np.dtype(np.float16): 4}
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", codes[value.dtype], value.nbytes) + value.tobytes()
    data += struct.pack("<I", 1) + text("decoder/weight") + text("encoder/weight")
    path = tmp_path_factory.mktemp("ct2") / "model.bin"
    path.write_bytes(data)
    return path, variables | {"decoder/weight": variables["encoder/weight"]}


def test_ctranslate2(ct2_path: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, variables = ct2_path
    read = read_ctranslate2(path)
    assert read.keys() == variables.keys()
    for name, value in variables.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_truncated_files_give_one_sentence(
    gguf_path: Path, legacy_path: tuple, ct2_path: tuple, tmp_path: Path
) -> None:
    for source, read in (
        (gguf_path, read_gguf),
        (legacy_path[0], read_legacy_state_dict),
        (ct2_path[0], read_ctranslate2),
    ):
        data = source.read_bytes()
        for length in [*range(0, len(data) - 40, max(1, len(data) // 60)), len(data) - 40]:
            (tmp_path / "cut").write_bytes(data[:length])
            with pytest.raises(UserError, match="cut is not a readable .*fetch it again"):
                read(tmp_path / "cut")


def test_files_of_another_kind(gguf_path: Path, legacy_path: tuple, ct2_path: tuple) -> None:
    for read, path in (
        (read_gguf, ct2_path[0]),
        (read_legacy_state_dict, gguf_path),
        (read_ctranslate2, legacy_path[0]),
    ):
        with pytest.raises(UserError, match="not a readable"):
            read(path)

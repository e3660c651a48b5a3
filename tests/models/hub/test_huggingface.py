"""Checkpoints by hub names: from a local cache in the hub's layout, and from a local server that speaks its API."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

import models
from models.errors import UserError
from models.hf.checkpoint import open_checkpoint
from models.hub import huggingface
from models.hub.huggingface import fetch
from models.registry import CHECKPOINTS, checkpoint_folder
from tests.models.hub.caches import COMMIT, write_cache
from tests.models.hub.serving import reply, served
from train.export import main as export

ROOT = Path(__file__).resolve().parents[3]
Request = http.server.BaseHTTPRequestHandler
OTHER = "b" * 40
CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def write_qwen2(folder: Path) -> Path:
    """A tiny checkpoint in two shards, and files that are not needed."""
    folder.mkdir()
    shapes = {f"model.layers.0.self_attn.{n}_proj.weight": (8, 16) for n in "kv"}
    shapes |= {f"model.layers.0.self_attn.{n}_proj.weight": (16, 16) for n in "qo"}
    shapes |= {f"model.layers.0.self_attn.{n}_proj.bias": (16 if n == "q" else 8,) for n in "qkv"}
    shapes |= {f"model.layers.0.mlp.{n}_proj.weight": (24, 16) for n in ("gate", "up")}
    shapes |= {"model.layers.0.mlp.down_proj.weight": (16, 24), "model.norm.weight": (16,)}
    shapes |= {f"model.layers.0.{n}_layernorm.weight": (16,) for n in ("input", "post_attention")}
    shapes |= {"model.embed_tokens.weight": (40, 16), "lm_head.weight": (40, 16)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    files = {"model-00001-of-00002.safetensors": list(shapes)[:9], "model-00002-of-00002.safetensors": list(shapes)[9:]}
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("a\n")
    (folder / "spk_dict.pt").write_bytes(b"not needed")
    (folder / "README.md").write_text("not needed")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qwen2(tmp_path_factory.mktemp("theirs") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no network, no token, no waiting, and an empty folder to be in."""
    folder = tmp_path / "hub cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's own attempts
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def found(name: str, progress=None) -> Path:
    return checkpoint_folder(name, CHECKPOINTS, progress)


def test_a_cached_checkpoint_is_read_and_exported_offline(cache, files, tmp_path, capsys):
    snapshot = write_cache(cache, "owner/tiny", files)
    assert found("owner/tiny") == found("owner/tiny@main") == found(f"owner/tiny@{COMMIT}") == snapshot
    assert export(["--model", "owner/tiny", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"wrote owner/tiny to {tmp_path / 'out'}\n"
    assert not (tmp_path / "out" / "vocab.txt").is_symlink()
    ours, theirs = (open_checkpoint(folder).tensors for folder in (tmp_path / "out", files))
    assert ours.keys() == theirs.keys() and all(ours[name].equals(theirs[name]) for name in ours)


def test_revisions_are_apart(cache, files):
    main = write_cache(cache, "owner/tiny", files)
    older = write_cache(cache, "owner/tiny", files, "v1", OTHER)
    assert (found("owner/tiny"), found("owner/tiny@v1")) == (main, older)
    with pytest.raises(UserError, match="run hf download owner/tiny --revision v2 --local-dir FOLDER"):
        found("owner/tiny@v2")


def test_a_local_folder_comes_first(cache, files):
    write_cache(cache, "owner/tiny", files)
    Path("owner/tiny").mkdir(parents=True)
    assert found("owner/tiny") == Path("owner/tiny")
    with pytest.raises(UserError, match="owner/tiny is no checkpoint: it has no config.json"):
        models.load("owner/tiny")


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "config.json"])
def test_what_a_cached_snapshot_lacks_is_named(lost, cache, files, capsys, tmp_path):
    (write_cache(cache, "owner/tiny", files) / lost).resolve().unlink()  # the link stays, and leads nowhere
    assert export(["--model", "owner/tiny", "--out", str(tmp_path / "out")]) == 2
    sentence = capsys.readouterr().err
    assert f"lacks {lost}; run hf download owner/tiny where there is a network" in sentence
    assert sentence.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_tensors(cache, files):
    snapshot = write_cache(cache, "owner/tiny", files)
    for file in snapshot.glob("model*"):
        file.unlink()
    with pytest.raises(UserError, match="lacks model.safetensors and pytorch_model.bin"):
        found("owner/tiny")


def test_older_formats_and_further_parts(cache, files):
    """Tensors in .bin files are taken where there are no safetensors, and parts are never required."""
    snapshot = write_cache(cache, "owner/tiny", files)
    for file in snapshot.glob("model*"):
        file.unlink()
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert found("owner/tiny") == snapshot


def test_neither_cached_nor_reachable(cache, monkeypatch):
    with pytest.raises(UserError) as error:
        models.load("owner/tiny")
    assert str(error.value) == (
        f"There is no folder owner/tiny, no model of that name is in the Hugging Face hub's cache ({cache}), and "
        "HF_HUB_OFFLINE is set; run hf download owner/tiny --local-dir FOLDER where there is a network, and give that "
        "folder."
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match=r"the hub does not answer \(ConnectError: .*hf download owner/tiny --local"):
        models.load("owner/tiny")


def test_a_cached_checkpoint_with_a_hub_that_does_not_answer(cache, files, monkeypatch):
    snapshot = write_cache(cache, "owner/tiny", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert found("owner/tiny") == snapshot


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="There is no folder owner/tiny, .* run pip install 'huggingface_hub>=1.31,<3'"):
        models.load("owner/tiny")


def test_what_is_no_name(cache):
    assert not any(map(huggingface.is_name, ("tiny", "./tiny", "a/b/c", "/a/b", "owner/tiny@", "owner/tiny@-x y")))
    with pytest.raises(UserError, match="is no name on the Hugging Face hub; write OWNER/NAME or OWNER/NAME@REVISION"):
        fetch("tiny", lambda folder: ())
    with pytest.raises(UserError, match="There is no folder owner/a--b, and it is no name"):
        models.load("owner/a--b")
    with pytest.raises(UserError, match="Unknown model 'tiny'; give one of smolav, the folder of a checkpoint, or OWN"):
        models.load("tiny")


class Hub:
    """A server of one repository, owner/tiny: what it was asked for, and how it answers."""

    def __init__(self, files: Path) -> None:
        self.files = {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
        self.sent: list[str] = []
        self.cut: str | None = None
        """A file that is sent half, after which the line is dead."""

    def __call__(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path)
        if request.headers.get("Authorization") == "Bearer hf_wrong":
            return self.refuse(request, 401, message="Invalid credentials in Authorization header")
        if "/gated" in path:
            return self.refuse(request, 403, "GatedRepo")
        if "owner/tiny" not in path:
            return self.refuse(request, 404, "RepoNotFound")
        if path.startswith("/api/models/owner/tiny/revision/"):
            if path.split("/")[-1] not in ("main", COMMIT):
                return self.refuse(request, 404, "RevisionNotFound")
            siblings = [{"rfilename": name} for name in self.files]
            return reply(request, json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode(), JSON)
        if path.startswith("/api/models/owner/tiny/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return reply(request, json.dumps(listed).encode(), JSON)
        self.send(request, path.partition(f"/resolve/{COMMIT}/")[2])

    def refuse(self, request: Request, status: int, code: str = "", message: str = "") -> None:
        request.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message}.items():
            if value:
                request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def send(self, request: Request, name: str) -> None:
        content = self.files[name]
        request.send_response(200)
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            self.sent.append(name)
            request.wfile.write(content[: len(content) // 2] if name == self.cut else content)


JSON = "application/json"


@pytest.fixture
def hub(files, monkeypatch):
    """The server, as the hub that names are looked up on."""
    served_files = Hub(files)
    with served(served_files) as url:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served_files


def test_what_is_needed_is_downloaded_once_and_then_read_offline(hub, files, cache, monkeypatch, capfd):
    seen: list[tuple[str, int, int | None]] = []
    folder = found("owner/tiny", lambda *report: seen.append(report))
    wanted = {"config.json", "vocab.txt", "model.safetensors.index.json"} | {p.name for p in files.glob("model-*")}
    assert sorted(hub.sent) == sorted(wanted) == sorted(path.name for path in folder.iterdir())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: hub.files[name] for name in wanted}
    assert folder.is_relative_to(cache) and folder.name == COMMIT
    tensors = sum(len(hub.files[name]) for name in wanted if name.endswith(".safetensors"))
    assert seen[-1] == ("owner/tiny", tensors, tensors) and {label for label, *_ in seen} == {"owner/tiny"}
    assert "Downloading" not in capfd.readouterr().err  # the library's own bars are not drawn as well
    hub.sent.clear()
    assert found("owner/tiny") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert found("owner/tiny") == folder and not hub.sent


def test_tensors_of_an_unsupported_model_are_not_downloaded(hub):
    hub.files["config.json"] = b'{"model_type": "gemma"}'
    with pytest.raises(UserError, match="'gemma', which is not supported; supported are llama"):
        found("owner/tiny")
    assert not [name for name in hub.sent if name.endswith(".safetensors")]


def test_a_download_that_is_cut_off_names_what_is_missing_and_continues(hub, monkeypatch):
    hub.cut = "model-00002-of-00002.safetensors"
    with pytest.raises(UserError, match="owner/tiny cannot be downloaded .* check the network and try again"):
        found("owner/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="lacks model-00002-of-00002.safetensors; run hf download owner/tiny"):
        found("owner/tiny")
    hub.cut = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = found("owner/tiny")
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == hub.files["model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("name", "token", "sentence"),
    [
        ("owner/gated", None, "owner/gated is gated; accept its terms on http.*/owner/gated and log in with hf auth"),
        ("owner/absent", None, "There is no folder owner/absent, and the Hugging Face hub shows no model owner/absent"),
        ("owner/tiny@v9", None, "owner/tiny has no revision v9; name a branch, a tag or a commit"),
        (
            "owner/tiny",
            "hf_wrong",
            "refuses your token for owner/tiny; log in again with hf auth login, or set HF_TOKEN",
        ),
    ],
)
def test_what_the_hub_refuses(name, token, sentence, hub, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=sentence) as error:
        models.load(name)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(UserError, match="hub's cache .*file/hub cannot be used .* set HF_HOME to another folder"):
        found("owner/tiny")


@pytest.mark.complete
@pytest.mark.packaging
@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_process_with_the_librarys_own_variables(setting, cache, files, tmp_path):
    write_cache(cache, "owner/tiny", files)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= setting | {"HF_HUB_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "train.export", "--model"]
    run = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, check=False)
    done = run([*command, "owner/tiny", "--out", str(tmp_path / "out")])
    absent = run([*command, "owner/absent", "--out", str(tmp_path / "none")])
    assert done.returncode == 0 and (tmp_path / "out" / "model.safetensors").is_file()
    assert absent.returncode == 2 and "run hf download owner/absent --local-dir FOLDER" in absent.stderr
    assert "Traceback" not in absent.stderr

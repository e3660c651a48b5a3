"""Repositories in a local cache of the Hugging Face hub."""

import hashlib
from pathlib import Path

COMMIT = "a" * 40


def write_cache(cache: Path, name: str, files: Path, revision: str = "main", commit: str = COMMIT) -> Path:
    """A repository in the hub's cache as huggingface_hub lays it out; its snapshot is returned."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for file in (path for path in files.iterdir() if path.is_file()):
        content = file.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot

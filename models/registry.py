"""Models by name or folder."""

from collections.abc import Callable
from pathlib import Path

from models.errors import UserError
from models.interface import AVModel
from models.package_index import DownloadProgress
from models.smolav.model import SmolAVModel

MODELS: dict[str, Callable[[DownloadProgress | None], AVModel]] = {
    "smolav": lambda progress: SmolAVModel.load(None, progress)
}


def load_model(name: str, progress: DownloadProgress | None = None) -> AVModel:
    """A model by name, or one exported to a folder; `progress` is told of downloads.

    Raises:
        UserError: if there is neither such a name nor such a folder.
    """
    if name in MODELS:
        return MODELS[name](progress)
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"Unknown model {name!r}; give one of {', '.join(MODELS)}, or the folder of a checkpoint.")
    return SmolAVModel.load(folder, progress)

"""A model as an Orbax checkpoint, to be restored onto any mesh."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np

from models.files import whole_folder
from models.orbax import save_orbax
from train.exports.opened import open_model, with_dtype


def export_orbax(name: str, out: Path, dtype: np.dtype | None = None) -> None:
    """Writes all parameters, config.json and the tokenizer's files; `models.load` and `open_source` read the folder.

    Args:
        name: a model's name, or a checkpoint folder.
        out: the folder to make.
        dtype: type of the written parameters; None keeps theirs, which then must all be of one type.

    Raises:
        UserError: if there is no such model, or `out` is in use or cannot be written.
    """
    model = open_model(name)
    params = model.load(dtype)
    with whole_folder(out) as draft:
        save_orbax(draft, params)
        config = with_dtype(model.config, str(jax.tree.leaves(params)[0].dtype))
        (draft / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for path in model.companions:
            shutil.copy(path, draft)

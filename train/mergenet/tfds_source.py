"""Data sets of tensorflow-datasets (tfds) by random access, without TensorFlow.

What is prepared already is read from its files alone (`features.json` and array_record shards), whoever prepared it.
Otherwise tfds downloads and prepares it. Most of tfds's own builders need TensorFlow for that, even if only to open a
file; `train.mergenet.builders` has builders of the same names, versions and features that do not.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from models.errors import UserError
from train.mergenet.builders import BUILDERS

FORMAT = "array_record"


def open_tfds(
    name: str, split: str, data_dir: Path | None = None, *, undecoded: tuple[str, ...] = ()
) -> Sequence[dict[str, Any]]:
    """The examples of a split, decoded one by one as they are asked for; texts are bytes.

    Args:
        name: as tfds has it, with its configuration: ``squad/v2.0``.
        split: as tfds has it: ``train[:90%]``.
        data_dir: folder of prepared data sets; without it $TFDS_DATA_DIR, else ~/tensorflow_datasets.
        undecoded: features that are given as their files' bytes.

    Raises:
        UserError: if it is not prepared and cannot be, has no random access, or lacks the split.
    """
    folder = data_dir or Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets").expanduser()
    builder: Any = _prepared(name, folder) or _prepare(name, folder)
    try:
        return builder.as_data_source(
            split=split, decoders={feature: tfds.decode.SkipDecoding() for feature in undecoded} or None
        )
    except NotImplementedError as error:
        raise UserError(
            f"{name} in {folder} is prepared in a format without random access; remove it and prepare it again with "
            f'file_format="{FORMAT}".'
        ) from error
    except ValueError as error:
        raise UserError(
            f"{name} in {folder} has no split {split!r}, only {', '.join(sorted(builder.info.splits))}; "
            "remove it and prepare it again."
        ) from error


def _prepared(name: str, folder: Path) -> tfds.core.DatasetBuilder | None:
    """The data set as its files describe it, or None where there are none."""
    try:
        return read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        return None


def _prepare(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    fix = f'or set TFDS_DATA_DIR to a folder where tensorflow-datasets has prepared it with file_format="{FORMAT}"'
    try:
        own = BUILDERS.get(name)
        builder = own(data_dir=folder, file_format=FORMAT) if own else _builder(name, folder)
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"tensorflow-datasets knows no {name}, and {folder} holds none; correct the name, {fix}."
        ) from error
    except ImportError as error:
        raise UserError(
            f"{name} is not in {folder}, and to prepare it tensorflow-datasets needs the package {_missing(error)}, "
            f"which is not installed; install it, {fix}."
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        raise UserError(
            f"{name} is not in {folder} and could not be downloaded and prepared ({_cause(error)}); check the network "
            f"and the folder, {fix}."
        ) from error
    return builder


def _builder(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    return tfds.builder(name, data_dir=folder, file_format=FORMAT)


def _missing(error: BaseException | None) -> str:
    """The package that an ImportError is about; tfds raises it anew without the name."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name
        error = error.__cause__ or error.__context__
    return "of the message above"


def _cause(error: Exception) -> str:
    """The first line of a message, as a phrase."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")

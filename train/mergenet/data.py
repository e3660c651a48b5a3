"""The data sets that recipes name, and their splits.

CIFAR-10 comes from the package index (`train.data.sources.cifar10`), all others through tensorflow-datasets. Where the
official data have a training and a test set only, part of the training set validates and nothing is chosen on the test
set; the official test sets of SQuAD and VQA are not public, so their development sets are our test sets. VQA's test
pictures are all of COCO's val2014, so that captions to train on are those of train2014 alone, without `restval`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import UserError
from train.data.sources import cifar10
from train.data.sources.items import SPLITS, Pictures
from train.mergenet.tfds_source import open_tfds


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set's splits are in tensorflow-datasets.

    Attributes:
        name: of the data set there, with its configuration.
        train: expression of the part to train on.
        validation: of the part that selects.
        test: of the part that is reported.
    """

    name: str
    train: str
    validation: str
    test: str


SOURCES: dict[str, Source] = {
    "cifar100": Source("cifar100", "train[:90%]", "train[90%:]", "test"),
    "imdb_reviews": Source("imdb_reviews", "train[:90%]", "train[90%:]", "test"),
    "squad": Source("squad/v2.0", "train[:95%]", "train[95%:]", "validation"),
    "coco_captions": Source("coco_captions", "train", "val", "test"),
    "vqa_v2": Source("vqa_v2", "train[:95%]", "train[95%:]", "validation"),
}
PICTURE_SETS = ("cifar10", "cifar100")


def open_examples(
    name: str, split: str, data_dir: Path | None = None, *, undecoded: tuple[str, ...] = ()
) -> Sequence[dict[str, Any]]:
    """The examples of a split by random access, as `open_tfds` gives them.

    Args:
        name: one of SOURCES.
        split: one of SPLITS.
        data_dir: folder of data sets that tensorflow-datasets has prepared.
        undecoded: features that are given as their files' bytes.

    Raises:
        UserError: if there is no such data set or split, or it cannot be opened.
    """
    if name not in SOURCES:
        raise UserError(f"There is no data set {name!r}; take one of {', '.join(sorted(SOURCES))}.")
    _check_split(split)
    source = SOURCES[name]
    return open_tfds(source.name, getattr(source, split), data_dir, undecoded=undecoded)


def load_pictures(name: str, split: str, data_dir: Path | None = None) -> Pictures:
    """All pictures of a split with their labels, in memory: 45,000 / 5,000 / 10,000.

    Args:
        name: one of PICTURE_SETS.
        split: one of SPLITS.
        data_dir: see `open_examples`.

    Raises:
        UserError: as `open_examples`.
    """
    if name not in PICTURE_SETS:
        raise UserError(f"There are no pictures {name!r}; take {' or '.join(PICTURE_SETS)}.")
    if name == "cifar10":
        _check_split(split)
        return cifar10.load(split)
    examples: Any = open_examples(name, split, data_dir)
    images, labels = zip(*((row["image"], int(row["label"])) for row in examples), strict=True)
    names = examples.dataset_info.features["label"].names
    return Pictures(np.stack(images), np.asarray(labels, np.int64), tuple(names))


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; take one of {', '.join(SPLITS)}.")

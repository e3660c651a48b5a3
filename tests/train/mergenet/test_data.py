"""Data sets are downloaded, prepared and read without TensorFlow, in the real ones' formats; what fails is told."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from models.errors import UserError
from tests.train.mergenet.served import CIFAR, CONTEXT, QUESTIONS, REVIEWS, point_builders_at, served
from train.mergenet.builders import Cifar100, png
from train.mergenet.data import SOURCES, load_pictures, open_examples
from train.mergenet.tfds_source import open_tfds


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder into which the first opening of each data set downloads it."""
    folder = tmp_path_factory.mktemp("served")
    with served(folder) as url, pytest.MonkeyPatch.context() as patch:
        point_builders_at(url, folder, patch)
        yield tmp_path_factory.mktemp("data")


def test_cifar100(data_dir: Path) -> None:
    parts = {split: load_pictures("cifar100", split, data_dir) for split in ("train", "validation", "test")}
    assert [len(part.labels) for part in parts.values()] == [36, 4, 12]
    assert parts["test"].names == tuple(f"fine_{i}" for i in range(100))
    for official, names in (("train", ("train", "validation")), ("test", ("test",))):
        expected = {(int(row[1]), row[2:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes()) for row in CIFAR[official]}
        found = [
            (int(label), image.tobytes())
            for name in names
            for image, label in zip(parts[name].images, parts[name].labels, strict=True)
        ]
        assert len(found) == len(expected) and set(found) == expected  # no picture in two parts
    again: Any = open_examples("cifar100", "test", data_dir)
    assert {row["coarse_label"] for row in again} == set(CIFAR["test"][:, 0].tolist())
    own = tfds.builder("cifar100", data_dir=data_dir)  # what we prepare is what tensorflow-datasets would read
    assert own.info.features is not None and own.info.splits["train"].num_examples == 40
    assert repr(own.info.features) == repr(again.dataset_info.features)


def test_imdb_reviews(data_dir: Path) -> None:
    found = {row["text"].decode(): row["label"] for row in open_tfds("imdb_reviews", "train", data_dir)}
    assert found == {REVIEWS["aclImdb/train/pos/0_9.txt"].strip(): 1, REVIEWS["aclImdb/train/neg/0_2.txt"]: 0}
    assert [row["label"] for row in open_tfds("imdb_reviews", "unsupervised", data_dir)] == [-1]
    assert [row["text"] for row in open_examples("imdb_reviews", "test", data_dir)] == [b"Great fun."]


def test_squad(data_dir: Path) -> None:
    rows = list(open_examples("squad", "test", data_dir))
    assert {row["id"].decode() for row in rows} == set(QUESTIONS)
    for row in rows:
        asked = QUESTIONS[row["id"].decode()]
        assert row["context"].decode() == CONTEXT and row["is_impossible"] == asked["is_impossible"]
        assert [text.decode() for text in row["answers"]["text"]] == [a["text"] for a in asked["answers"]]
        assert list(row["answers"]["answer_start"]) == [a["answer_start"] for a in asked["answers"]]


def test_vqa_v2(data_dir: Path) -> None:
    rows = {int(row["image/id"]): row for row in open_examples("vqa_v2", "test", data_dir)}
    assert {number: row["image"].shape for number, row in rows.items()} == {n: (10 + n, 20, 3) for n in (7, 8, 9)}
    for number, row in rows.items():
        asked = {
            int(key): text.decode()
            for key, text in zip(*(row["questions"][name] for name in ("id", "text")), strict=True)
        }
        numbers = [2 * (number - 7), 2 * (number - 7) + 1] if number < 9 else []
        assert asked == {70 + n: f"How many in Val {n}?" for n in numbers}
        assert [text.decode() for text in row["questions"]["answer"]] == [str(key - 70) for key in asked]
        answers = [text.decode() for text in row["answers"]]
        assert answers == [str(key - 70) if i < 8 else "many" for key in asked for i in range(10)]


def test_coco_captions(data_dir: Path) -> None:
    rows: Any = open_examples("coco_captions", "train", data_dir)
    names = [f"COCO_train2014_{n:012d}.jpg" for n in (7, 8, 9)]  # and none of val2014
    assert sorted(row["image/filename"].decode() for row in rows) == names
    for row in rows:
        number = int(row["image/id"])
        assert row["image"].shape == (10 + number, 20, 3) and abs(int(row["image"][5, 5, 2]) - 25 * number) < 3
        assert [text.decode() for text in row["captions"]["text"]] == [f"Caption {i} of {number}" for i in range(5)]
        assert len(row["objects"]["id"]) == 2 * (number == 8)
    objects = next(row["objects"] for row in rows if row["image/id"] == 8)
    label = rows.dataset_info.features["objects"].feature["label"]
    assert [label.int2str(int(i)) for i in objects["label"]] == ["toothbrush", "thing 13"]
    np.testing.assert_allclose(objects["bbox"][0], [0, 5 / 20, 9 / 18, 15 / 20])
    assert list(objects["is_crowd"]) == [False, True] and list(objects["area"]) == [12, 12]
    for split, number in (("validation", 8), ("test", 9)):
        (row,) = open_examples("coco_captions", split, data_dir)
        assert row["image/id"] == number


def test_nothing_here_imported_tensorflow(data_dir: Path) -> None:
    assert len(open_examples("cifar100", "test", data_dir)) == 12
    assert "tensorflow" not in sys.modules


def test_png_holds_the_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(image)))), image)


def test_a_failed_download_is_told(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar100, "URL", Cifar100.URL + ".gone")
    with pytest.raises(UserError, match=r"^cifar100 is not in .* HTTP code: 404\); check the network .* TFDS_DATA_DIR"):
        load_pictures("cifar100", "train", tmp_path)


def test_a_damaged_download_is_told(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cifar100, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="is not the file that it should be"):
        load_pictures("cifar100", "train", tmp_path)


def test_an_unusable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="imdb_reviews is not in .* could not be downloaded and prepared"):
        open_examples("imdb_reviews", "train", tmp_path / "file")


def test_a_builder_that_needs_tensorflow_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"coco/2017 is not in .* needs the package tensorflow, which is not installed"):
        open_tfds("coco/2017", "train", tmp_path)


def test_other_formats_and_splits_are_told(data_dir: Path, tmp_path: Path) -> None:
    open_examples("cifar100", "test", data_dir)
    with pytest.raises(UserError, match="cifar100 in .* has no split 'dev', only test, train"):
        open_tfds("cifar100", "dev", data_dir)
    shutil.copytree(data_dir / "cifar100", tmp_path / "cifar100")
    (info,) = tmp_path.glob("cifar100/*/dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match='format without random access; .* file_format="array_record"'):
        open_examples("cifar100", "test", tmp_path)


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no data set 'mnist'; take one of cifar100, coco_captions, imdb_rev"):
        open_examples("mnist", "train", tmp_path)
    with pytest.raises(UserError, match="There is no split 'dev'; take one of train, validation, test"):
        open_examples("squad", "dev", tmp_path)
    with pytest.raises(UserError, match="There is no split 'dev'"):
        load_pictures("cifar10", "dev")
    with pytest.raises(UserError, match="There are no pictures 'squad'; take cifar10 or cifar100"):
        load_pictures("squad", "train")
    with pytest.raises(UserError, match="tensorflow-datasets knows no vqa_v9"):
        open_tfds("vqa_v9", "train", tmp_path)
    assert all(source.name.split("/")[0] == name for name, source in SOURCES.items())

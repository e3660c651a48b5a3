"""Tiny data sets with the real ones' file formats, served over HTTP by this machine to tensorflow-datasets."""

import functools
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.datasets.squad import squad_dataset_builder

from train.mergenet.builders import Cifar100, ImdbReviews
from train.mergenet.coco import CocoCaptions
from train.mergenet.vqa import VqaV2

ROWS = {"train": 40, "test": 12}
CIFAR = {
    split: np.random.default_rng(len(split)).integers(0, 20, (rows, 2 + 3072)).astype(np.uint8)
    for split, rows in ROWS.items()
}
REVIEWS = {
    "aclImdb/train/pos/0_9.txt": "A fine film.\n",
    "aclImdb/train/neg/0_2.txt": "Ein fürchterlicher Film.",
    "aclImdb/train/unsup/0_0.txt": "Seen it?",
    "aclImdb/test/pos/0_10.txt": "Great fun.",
    "aclImdb/train/urls_pos.txt": "no review",
}
CONTEXT = "Ada Lovelace wrote notes in 1843. The café of Zürich serves the cat. " * 3


def _question(number: int) -> dict[str, Any]:
    text = "1843" if number % 2 else "café of Zürich"
    answer = {"text": text, "answer_start": CONTEXT.index(text)}
    asked = {"id": f"q{number}", "question": "When, or where?", "is_impossible": number % 3 == 0}
    return asked | ({"answers": [], "plausible_answers": [answer]} if number % 3 == 0 else {"answers": [answer] * 2})


QUESTIONS = {f"q{number}": _question(number) for number in range(8)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's files over HTTP; the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def _archive(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _vqa(folder: Path) -> dict[str, str]:
    """VQA's six archives, a split's three pictures of which the last has no question; hashes of the pictures'."""
    hashes = {}
    for texts, pictures in (("Train", "train2014"), ("Val", "val2014")):
        questions = [
            {"image_id": 7 + n // 2, "question_id": 70 + n, "question": f"How many in {texts} {n}?"} for n in range(4)
        ]
        annotations = [
            {
                "question_id": question["question_id"],
                "multiple_choice_answer": f"{n}",
                "answers": [{"answer": f"{n}" if i < 8 else "many"} for i in range(10)],
            }
            for n, question in enumerate(questions)
        ]
        for kind, rows in (("Questions", questions), ("Annotations", annotations)):
            with zipfile.ZipFile(folder / f"v2_{kind}_{texts}_mscoco.zip", "w") as archive:
                archive.writestr(f"v2_{pictures}.json", json.dumps({kind.lower(): rows[::-1]}))
        with zipfile.ZipFile(folder / f"{pictures}.zip", "w") as archive:
            for number in (7, 8, 9):
                file = io.BytesIO()
                Image.new("RGB", (20, 10 + number), (0, 0, 25 * number)).save(file, "JPEG")
                archive.writestr(f"{pictures}/COCO_{pictures}_{number:012d}.jpg", file.getvalue())
        hashes[pictures] = hashlib.sha256((folder / f"{pictures}.zip").read_bytes()).hexdigest()
    return hashes


def _coco(folder: Path) -> dict[str, str]:
    """COCO's annotations and Karpathy's captions of the pictures that `_vqa` writes; their hashes."""
    splits = {"train2014": ("train", "train", "train"), "val2014": ("restval", "val", "test")}
    captions, annotations = [], {}
    for pictures, names in splits.items():
        images = [
            {"id": n, "file_name": f"COCO_{pictures}_{n:012d}.jpg", "width": 20, "height": 10 + n} for n in (7, 8, 9)
        ]
        boxes = [
            {"id": n, "image_id": 8, "area": 12.5, "bbox": [5.0, 0.0, 10.0, 9.0], "category_id": n, "iscrowd": n % 2}
            for n in (90, 13)
        ]
        categories = [{"id": n, "name": f"thing {n}"} for n in range(1, 81)] + [{"id": 90, "name": "toothbrush"}]
        parts = {"images": images, "annotations": boxes, "categories": categories[1:]}
        annotations[f"annotations/instances_{pictures}.json"] = parts
        captions += [
            {
                "filename": image["file_name"],
                "split": split,
                "sentences": [{"raw": f"Caption {i} of {image['id']}", "sentid": i} for i in range(5)],
            }
            for image, split in zip(images, names, strict=True)
        ]
    archives = {"annotations": annotations, "captions": {"dataset_coco.json": {"images": captions}}}
    for name, files in archives.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for file, content in files.items():
                archive.writestr(file, json.dumps(content))
    return {name: hashlib.sha256((folder / f"{name}.zip").read_bytes()).hexdigest() for name in archives}


def point_builders_at(url: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Writes the data sets into the folder, and makes the builders download them from there."""
    cifar = {f"cifar-100-binary/{split}.bin": rows.tobytes() for split, rows in CIFAR.items()}
    for kind, count in (("fine", 100), ("coarse", 20)):
        names = "".join(f"{kind}_{i}\n" for i in range(count))
        cifar[f"cifar-100-binary/{kind}_label_names.txt"] = names.encode()
    reviews = {name: text.encode() for name, text in REVIEWS.items()}
    for builder, name, files in ((Cifar100, "cifar.tar.gz", cifar), (ImdbReviews, "imdb.tar.gz", reviews)):
        patch.setattr(builder, "SHA256", _archive(folder / name, files))
        patch.setattr(builder, "URL", url + name)
    squad = {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(QUESTIONS.values())}]}]}
    for part in ("train", "dev"):
        (folder / f"{part}-v2.0.json").write_text(json.dumps(squad))
    patch.setattr(squad_dataset_builder, "_URL", url)
    pictures = _vqa(folder)
    patch.setattr(VqaV2, "SHA256", pictures)
    patch.setattr(VqaV2, "TEXTS", url)
    patch.setattr(VqaV2, "PICTURES", {name: f"{url}{name}.zip" for name in pictures})
    hashes = pictures | _coco(folder)
    patch.setattr(CocoCaptions, "SHA256", hashes)
    patch.setattr(CocoCaptions, "URLS", {name: f"{url}{name}.zip" for name in hashes})

"""VQA v2.0 (Goyal et al. 2017, arXiv 1612.00837), which tensorflow-datasets does not have, as a builder for it.

An example is a picture of COCO 2014 with all its questions, so that no picture is stored twice: 82,783 for training
with 443,757 questions, 40,504 for validation with 214,354. Preparing it downloads 20 GB.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from train.mergenet.checks import checked
from train.mergenet.coco import PICTURES, SHA256

SPLITS = {"train": ("Train", "train2014"), "validation": ("Val", "val2014")}

with registered.skip_registration():

    class VqaV2(tfds.core.GeneratorBasedBuilder):
        """Pictures, and per picture questions with the ten people's answers to each, one after the other."""

        VERSION = tfds.core.Version("2.0.0")
        TEXTS = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
        PICTURES = PICTURES
        SHA256 = SHA256

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "image/id": np.int64,
                "questions": tfds.features.Sequence(
                    {"id": np.int64, "text": tfds.features.Text(), "answer": tfds.features.Text()}
                ),
                "answers": tfds.features.Sequence(tfds.features.Text()),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                homepage="https://visualqa.org",
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            return {split: self._generate_examples(self._download(dl_manager, *SPLITS[split])) for split in SPLITS}

        def _download(self, dl_manager: tfds.download.DownloadManager, texts: str, pictures: str) -> dict[str, Path]:
            urls = {
                "questions": f"{self.TEXTS}v2_Questions_{texts}_mscoco.zip",
                "annotations": f"{self.TEXTS}v2_Annotations_{texts}_mscoco.zip",
                "pictures": self.PICTURES[pictures],
            }
            files = {kind: Path(dl_manager.download(url)) for kind, url in urls.items()}
            checked(files["pictures"], self.SHA256[pictures])
            return files

        def _generate_examples(self, files: dict[str, Path]) -> Iterator[tuple[int, dict[str, Any]]]:
            annotations = {row["question_id"]: row for row in _only_json(files["annotations"])["annotations"]}
            questions: dict[int, list[dict[str, Any]]] = {}
            for question in _only_json(files["questions"])["questions"]:
                questions.setdefault(question["image_id"], []).append(question)
            with zipfile.ZipFile(files["pictures"]) as archive:
                for name in archive.namelist():
                    if not name.endswith(".jpg"):
                        continue
                    number = int(Path(name).stem.rsplit("_", 1)[1])
                    asked = questions.get(number, [])
                    rows = [annotations[question["question_id"]] for question in asked]
                    answers = [answer["answer"] for row in rows for answer in row["answers"]]
                    yield (
                        number,
                        {
                            "image": io.BytesIO(archive.read(name)),
                            "image/id": number,
                            "questions": [
                                {
                                    "id": question["question_id"],
                                    "text": question["question"],
                                    "answer": row["multiple_choice_answer"],
                                }
                                for question, row in zip(asked, rows, strict=True)
                            ],
                            "answers": answers,
                        },
                    )


def _only_json(path: Path) -> dict[str, Any]:
    """The one JSON file of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".json") and not name.startswith("__MACOSX"))
        return json.loads(archive.read(name))

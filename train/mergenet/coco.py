"""COCO 2014 with five captions a picture (Lin et al. 2014, arXiv 1405.0312), split as Karpathy and Li (2015) did.

A builder for tensorflow-datasets of the same name, version and features as its own, which needs TensorFlow. Preparing
it downloads 20 GB.
"""

import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from train.mergenet.checks import checked

ROOT = "http://images.cocodataset.org/"
PICTURES = {"train2014": f"{ROOT}zips/train2014.zip", "val2014": f"{ROOT}zips/val2014.zip"}
SHA256 = {
    "train2014": "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    "val2014": "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    "annotations": "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    "captions": "4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
}
SPLITS = {"train": "train2014", "val": "val2014", "test": "val2014", "restval": "val2014"}

with registered.skip_registration():  # its name is tfds's own

    class CocoCaptions(tfds.core.GeneratorBasedBuilder):
        """Pictures with captions, and with the boxes of objects."""

        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014", version=tfds.core.Version("1.1.0"))]
        URLS = PICTURES | {
            "annotations": f"{ROOT}annotations/annotations_trainval2014.zip",
            "captions": "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
        }
        SHA256 = SHA256

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "image/filename": tfds.features.Text(),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(
                    {
                        "id": np.int64,
                        "area": np.int64,
                        "bbox": tfds.features.BBoxFeature(),
                        "label": tfds.features.ClassLabel(num_classes=80),
                        "is_crowd": np.bool_,
                    }
                ),
                "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                homepage="https://cocodataset.org",
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            files = {
                kind: checked(Path(dl_manager.download(url)), self.SHA256[kind]) for kind, url in self.URLS.items()
            }
            features: Any = self.info.features
            categories = _member(files["annotations"], "annotations/instances_train2014.json")["categories"]
            features["objects"].feature["label"].names = [category["name"] for category in categories]
            return {split: self._generate_examples(files, split) for split in SPLITS}

        def _generate_examples(self, files: dict[str, Path], split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            folder = SPLITS[split]
            chosen = {
                image["filename"]: image["sentences"]
                for image in _member(files["captions"], "dataset_coco.json")["images"]
                if image["split"] == split
            }
            instances = _member(files["annotations"], f"annotations/instances_{folder}.json")
            names = {category["id"]: category["name"] for category in instances["categories"]}
            objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for found in instances["annotations"]:
                objects[found["image_id"]].append(found)
            with zipfile.ZipFile(files[folder]) as archive:
                for image in instances["images"]:
                    name = image["file_name"]
                    if name not in chosen:
                        continue
                    yield (
                        name,
                        {
                            "image": io.BytesIO(archive.read(f"{folder}/{name}")),
                            "image/filename": name,
                            "image/id": image["id"],
                            "objects": [
                                {
                                    "id": found["id"],
                                    "area": int(found["area"]),
                                    "bbox": _box(found["bbox"], image["width"], image["height"]),
                                    "label": names[found["category_id"]],
                                    "is_crowd": bool(found["iscrowd"]),
                                }
                                for found in objects[image["id"]]
                            ],
                            "captions": [{"text": s["raw"], "id": s["sentid"]} for s in chosen[name]],
                        },
                    )


def _member(path: Path, name: str) -> dict[str, Any]:
    """A JSON file of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(name))


def _box(corner_and_size: list[float], width: int, height: int) -> tfds.features.BBox:
    """COCO's pixels as fractions of the picture."""
    x, y, across, down = corner_and_size
    return tfds.features.BBox(ymin=y / height, xmin=x / width, ymax=(y + down) / height, xmax=(x + across) / width)

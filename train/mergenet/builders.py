"""Builders of tensorflow-datasets that need no TensorFlow, for data sets whose own builders do.

Names, versions and features are those of tensorflow-datasets 4.9, so what is prepared here is read there and the
other way round.
"""

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from tensorflow_datasets.core import registered

from train.data.sources.store import read_member
from train.mergenet.checks import checked
from train.mergenet.coco import CocoCaptions
from train.mergenet.vqa import VqaV2

PICTURE = 32 * 32 * 3  # bytes of a CIFAR picture: all red, all green, all blue


def png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A picture as a PNG file."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)  # 0: the row as it is

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


with registered.skip_registration():  # their names are tfds's own

    class Cifar100(tfds.core.GeneratorBasedBuilder):
        """CIFAR-100 (Krizhevsky 2009) from its binary version."""

        VERSION = tfds.core.Version("3.0.2")
        URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
        SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
        FOLDER = "cifar-100-binary"

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=100),
                "coarse_label": tfds.features.ClassLabel(num_classes=20),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            archive = checked(Path(dl_manager.download(self.URL)), self.SHA256)
            features: Any = self.info.features
            for key, file in (("label", "fine_label_names.txt"), ("coarse_label", "coarse_label_names.txt")):
                features[key].names = self._read(archive, file).decode().split()
            return {split: self._generate_examples(archive, split) for split in ("train", "test")}

        def _read(self, archive: Path, file: str) -> bytes:
            with tarfile.open(archive) as tar:
                return read_member(tar, f"{self.FOLDER}/{file}")

        def _generate_examples(self, archive: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            rows = np.frombuffer(self._read(archive, f"{split}.bin"), np.uint8).reshape(-1, 2 + PICTURE)
            for number, row in enumerate(rows):
                image = row[2:].reshape(3, 32, 32).transpose(1, 2, 0)
                yield (
                    number,
                    {
                        "id": f"{split}_{number:05d}",
                        "image": io.BytesIO(png(image)),
                        "label": int(row[1]),
                        "coarse_label": int(row[0]),
                    },
                )

    class ImdbReviews(tfds.core.GeneratorBasedBuilder):
        """IMDB reviews (Maas et al. 2011): 25,000 + 25,000 with a label, 50,000 without (-1)."""

        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain_text", version=tfds.core.Version("1.0.0"))]
        URL = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
        SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
        FOLDERS = {"train": "train", "test": "test", "unsupervised": "train"}

        def _info(self) -> tfds.core.DatasetInfo:
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["neg", "pos"])}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("text", "label"),
                homepage="http://ai.stanford.edu/~amaas/data/sentiment/",
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            archive = checked(Path(dl_manager.download(self.URL)), self.SHA256)
            return {split: self._generate_examples(archive, split) for split in self.FOLDERS}

        def _generate_examples(self, archive: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
            kinds = {"unsup": -1} if split == "unsupervised" else {"neg": 0, "pos": 1}
            with tarfile.open(archive) as tar:
                for member in tar:
                    parts = member.name.split("/")
                    if parts[:2] == ["aclImdb", self.FOLDERS[split]] and len(parts) == 4 and parts[2] in kinds:
                        text = read_member(tar, member.name).strip()
                        yield member.name, {"text": text, "label": kinds[parts[2]]}


BUILDERS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {
    "cifar100": Cifar100,
    "coco_captions": CocoCaptions,
    "imdb_reviews": ImdbReviews,
    "vqa_v2": VqaV2,
}
"""By the names that tensorflow-datasets gives them."""

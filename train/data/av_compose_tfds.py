"""av_compose as a tensorflow-datasets builder, without TensorFlow: `av_compose/dialogues`, /transcripts and /needles.

python -m train.data.av_compose_tfds --data-dir FOLDER --sets needles
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tyro

from models import command
from train.data.av_compose import COUNTS, SETS, VERSION, Records, Set
from train.mergenet.tfds_source import FORMAT

_features = tfds.features


class AvCompose(tfds.core.GeneratorBasedBuilder):
    """Composed clips of 10 to 120 seconds and questions about them; docs/av_compose.md is the data card."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version=VERSION, description=name) for name in SETS]

    def _info(self) -> tfds.core.DatasetInfo:
        text, seconds = _features.Text(), np.float32
        question = {"conversation": np.int32, "kind": text, "subkind": text, "text": text, "answer": text}
        features = {
            "id": text,
            "clip": _features.Text(),  # the bytes of a Matroska file
            "seconds": np.int32,
            "group": text,
            "depth": np.float32,
            "questions": _features.Sequence(question),
            "shown": _features.Sequence({"picture": np.int32, "name": text, "start": np.int32, "end": np.int32}),
            "heard": _features.Sequence(
                {"kind": text, "recording": text, "name": text, "start": seconds, "end": seconds}
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips composed of CIFAR-10's pictures, spoken digits and instruments' notes.",
            features=_features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # pictures and recordings come as for training, by train.data.sources
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        name: Any = self.builder_config and self.builder_config.name
        for record in Records(name, split):
            yield record["id"], record


@dataclasses.dataclass(frozen=True)
class Options:
    """Composes sets of av_compose and keeps them in a folder."""

    data_dir: Path
    """Folder of prepared data sets, for `eval.benchmark --data`."""
    sets: tuple[Set, ...] = SETS
    """Which ones."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m train.data.av_compose_tfds", description=__doc__)

    def prepare() -> None:
        for name in options.sets:
            AvCompose(config=name, data_dir=options.data_dir, file_format=FORMAT).download_and_prepare()
            print(f"av_compose/{name} is in {options.data_dir}")

    return command.run(prepare)


if __name__ == "__main__":
    sys.exit(main())

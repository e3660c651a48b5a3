"""Held-out test clips: composed of photographs and recordings that no training saw, with their questions."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

import models
from eval.tasks.interface import Question as Asked
from eval.tasks.interface import Task
from models.errors import UserError
from models.smolav.config import LAYOUTS, Layout
from models.smolav.encoders import Encoders
from models.smolav.model import SmolAVModel
from models.smolav.preprocess import EncodedMedia
from train.data.clips import Clip, ClipConfig
from train.data.features import ClipPool, PictureFeatures, PoolConfig, sources_for
from train.data.questions import ANSWERS, Question

TEST_SEED = 20_000
MOST = 1000
"""Clips that accuracy is measured on; number i is always the same."""
ALL = 2100
"""All that there are: tables of few policies are about others, and what is tuned is tuned on the last hundred."""
GROUPS = ("video", "spoken words", "instruments", "audio-visual")


@dataclasses.dataclass(frozen=True)
class HeldOutClips:
    """The list of test clips of 10 to 30 seconds, 2 to 4 pictures each, not augmented."""

    pool: ClipPool
    pictures: PictureFeatures

    @classmethod
    def load(cls, encoders: Encoders) -> "HeldOutClips":
        """Opens the test split's sources; features are encoded when first asked for, and kept on disk."""
        pool = ClipPool(PoolConfig(ClipConfig(), ALL, TEST_SEED, "test"), sources_for("test"), encoders)
        return cls(pool, PictureFeatures("test", encoders))

    def numbered(self, numbers: Iterable[int]) -> Iterator[tuple[int, Clip, EncodedMedia]]:
        """Yields the clips of these numbers, below ALL, with their encoded media."""
        for number in numbers:
            clip = self.pool.clip(number)
            yield number, clip, EncodedMedia(self.pictures.take(clip.picture_ids), self.pool.audio(number))


@dataclasses.dataclass(frozen=True)
class HeldOutTask(Task):
    """A task on the held-out clips; an example's id is the number of its clip."""

    model: SmolAVModel
    clips: HeldOutClips

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """SmolAV by name, or one exported to a folder, with the clips.

        Raises:
            UserError: if it is another model or cannot be loaded, or the user names data.
        """
        if data is not None:
            raise UserError(f"This task composes its own clips and reads no data from {data}; leave out --data.")
        loaded = models.load(model)
        if not isinstance(loaded, SmolAVModel):
            raise UserError(f"This task asks SmolAV, whose clips are encoded once for all; {model} is another model.")
        return cls(loaded, HeldOutClips.load(loaded.encoders))

    @property
    def ids(self) -> Sequence[str]:
        """Numbers of clips."""
        return [str(number) for number in range(ALL)]


def layout_of(number: int) -> Layout:
    """The order of a clip's media: the layouts take turns."""
    return LAYOUTS[number % len(LAYOUTS)]


def as_asked(clip: Clip, number: int, question: Question) -> Asked:
    """A question about the clip of this number as a benchmark task asks it."""
    labels = {
        "layout": layout_of(number),
        "answer": ANSWERS[question.subkind],
        "candidates": candidates(clip, question),
    }
    return Asked(question.text, (question.answer,), group_of(question), labels)


def group_of(question: Question) -> str:
    """The row of the results that a question counts for, one of GROUPS."""
    if question.kind == "audio":
        return "spoken words" if ANSWERS[question.subkind] == "digit" else "instruments"
    return {"video": "video", "audio_visual": "audio-visual"}[question.kind]


def candidates(clip: Clip, question: Question) -> int:
    """How many things in the clip are of the kind that is asked for: guessing among them is right once in so many."""
    kind = ANSWERS[question.subkind]
    names = [p.name for p in clip.pictures] if kind == "picture" else [s.name for s in clip.sounds if s.kind == kind]
    return len(np.unique(names))

"""Every question about each held-out clip, with the full attention: one packed pass answers all of a clip's."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from acckv_jax import CachePolicy
from eval.held_back import Said
from eval.held_out import HeldOutTask, as_asked, layout_of
from eval.packed import Evaluator
from eval.tasks.interface import Example, Name
from train.smolav.align import answer_words


@dataclasses.dataclass(frozen=True)
class ClipsFull(HeldOutTask):
    full_only: ClassVar[bool] = True

    @functools.cached_property
    def evaluator(self) -> Evaluator:
        """What runs the packed rows."""
        return Evaluator(self.model.config, self.model.all_params)

    def example(self, id: str) -> Example:
        """The clip of this number; the prefix is its packed rows, and its media."""
        [(number, clip, media)] = self.clips.numbered([int(id)])
        rows = self.evaluator.pack(clip, media, layout_of(number))
        asked = [as_asked(clip, number, question) for row, _ in rows for question in row.questions]
        return Example((rows, media), tuple((question,) for question in asked))

    def answers(
        self, example: Example, policies: Mapping[Name, CachePolicy], wanted: Collection[Name]
    ) -> Iterator[tuple[Name, list[Said]]]:
        """The answers of the full attention, under the name of the one policy."""
        rows, media = example.prefix
        words = answer_words(self.clips.pool.sources)[:-1]
        texts = [text for row, length in rows for text in self.evaluator.texts(row, media, length, words)]
        for name in wanted:
            yield name, [Said([text]) for text in texts]

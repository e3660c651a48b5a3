"""Two questions of different kinds about each held-out clip, under cache policies; each also after the other one.

The second question is asked after the first was answered, on the cache that was pruned for the first: this is where a
policy shows what it lost.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

from eval.held_back import Padding
from eval.held_out import GROUPS, HeldOutTask, as_asked, group_of, layout_of
from eval.tasks.interface import Example
from train.data.clips import Clip
from train.data.questions import Question, questions

LONG = 20
"""Seconds of a long clip."""


@dataclasses.dataclass(frozen=True)
class Clips(HeldOutTask):
    max_new_tokens: ClassVar[int] = 4
    padding: ClassVar[Padding] = Padding(prefix=(832,), question=24, rows=2, caches=16)
    # SnapKV's window fits into a tenth of the shortest clip. Answers are too short to evict anything while decoding.
    policy_options: ClassVar[dict[str, Any]] = {"window_size": 16, "evict_every": 0}

    def example(self, id: str) -> Example:
        """The clip of this number."""
        [(number, clip, media)] = self.clips.numbered([int(id)])
        one, other = (as_asked(clip, number, question) for question in two_kinds(clip, number))
        return Example(self.model.encode_features(media, layout_of(number)), ((one, other), (other, one)))


@dataclasses.dataclass(frozen=True)
class LongClips(Clips):
    """Those of at least 20 seconds: a twentieth of their prompt holds the text that some policies keep whole."""

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        """Numbers of clips."""
        return [id for id in super().ids if self.clips.pool.clip(int(id)).seconds >= LONG]


def two_kinds(clip: Clip, number: int) -> list[Question]:
    """Questions of two groups that the clip has, other ones for each clip: four clips in a row ask each group twice."""
    grouped = collections.defaultdict(list)
    for question in questions(clip):
        grouped[group_of(question)].append(question)
    groups = [group for group in GROUPS if grouped[group]]
    chosen = (groups[(number + i) % len(groups)] for i in range(2))
    return [grouped[group][number // len(groups) % len(grouped[group])] for group in chosen]

"""One question of each kind about each held-out clip, under cache policies; and a second one on the same cache.

The second question is another one of the clip's, asked after the first was answered, on the cache that was pruned for
the first: this is where a policy shows what it lost.
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
    padding: ClassVar[Padding] = Padding(prefix=(512, 832), question=24, rows=len(GROUPS), caches=8)
    # SnapKV's window fits into a tenth of the shortest clip. Answers are too short to evict anything while decoding.
    policy_options: ClassVar[dict[str, Any]] = {"window_size": 16, "evict_every": 0}

    def example(self, id: str) -> Example:
        """The clip of this number."""
        [(number, clip, media)] = self.clips.numbered([int(id)])
        asked = [as_asked(clip, number, question) for question in one_of_each(clip, number)]
        pairs = zip(asked, [*asked[1:], asked[0]], strict=True)
        return Example(self.model.encode_features(media, layout_of(number)), tuple(pairs))


@dataclasses.dataclass(frozen=True)
class LongClips(Clips):
    """Those of at least 20 seconds: a twentieth of their prompt holds the text that some policies keep whole."""

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        """Numbers of clips."""
        return [id for id in super().ids if self.clips.pool.clip(int(id)).seconds >= LONG]


def one_of_each(clip: Clip, number: int) -> list[Question]:
    """One question of each group that the clip has, another one for each clip."""
    grouped = collections.defaultdict(list)
    for question in questions(clip):
        grouped[group_of(question)].append(question)
    return [grouped[group][number % len(grouped[group])] for group in GROUPS if grouped[group]]

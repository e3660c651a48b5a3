"""Needles of av_compose: one fact at a chosen depth, in the sound, in a picture, or in both."""

import dataclasses
from typing import ClassVar

from eval.composed import ComposedTask
from train.data.av_compose import Set


@dataclasses.dataclass(frozen=True)
class Needles(ComposedTask):
    set: ClassVar[Set] = "needles"
    max_new_tokens: ClassVar[int] = 4

    @classmethod
    def group(cls, kind: str, subkind: str, group: str) -> str:
        """Where the fact is; how deep is a label."""
        return group

"""Dialogues of av_compose: four questions on one cache, one of each kind, in four orders."""

import dataclasses
from typing import ClassVar

from eval.composed import ComposedTask
from eval.held_back import Padding
from train.data.av_compose import TURNS, Set


@dataclasses.dataclass(frozen=True)
class Dialogues(ComposedTask):
    set: ClassVar[Set] = "dialogues"
    max_new_tokens: ClassVar[int] = 4
    padding: ClassVar[Padding] = dataclasses.replace(ComposedTask.padding, rows=len(TURNS), caches=4)

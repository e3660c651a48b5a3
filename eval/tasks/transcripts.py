"""Transcripts of av_compose: all that is heard, and all that is shown, in order; 10 to 60 words each."""

import dataclasses
from typing import ClassVar

from eval.composed import ComposedTask
from eval.held_back import Padding
from train.data.av_compose import Set


@dataclasses.dataclass(frozen=True)
class Transcripts(ComposedTask):
    set: ClassVar[Set] = "transcripts"
    metric: ClassVar[str] = "capped_word_error_rate"
    max_new_tokens: ClassVar[int] = 128  # 60 words of up to two tokens, and the end
    padding: ClassVar[Padding] = dataclasses.replace(ComposedTask.padding, rows=2, caches=8)

    @classmethod
    def group(cls, kind: str, subkind: str, group: str) -> str:
        """What is to be written down: pictures, or digits, instruments or both."""
        return "pictures" if subkind == "shown" else group

"""A number hidden in repeated sentences: the pass-key task of Mohtashami and Jaggi (2023, arXiv 2305.16300).

The wording is our own; a prompt of 512 to 4,096 tokens holds the number at a depth of 0 to 1.
"""

import dataclasses
from typing import ClassVar

from eval.tasks.interface import Example, Question
from eval.text import LENGTHS, TextTask, generator

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
FILLER = "The field is wide. The river is calm. The clouds drift over the hill. The road goes up and down again."
ROOM = 90  # tokens for the other sentences, the question and the answer


@dataclasses.dataclass(frozen=True)
class PassKey(TextTask):
    max_new_tokens: ClassVar[int] = 8  # digits are tokens of their own

    def example(self, id: str) -> Example:
        """The example of this number; lengths and depths take turns."""
        length, depth = LENGTHS[int(id) % len(LENGTHS)], DEPTHS[int(id) // len(LENGTHS) % len(DEPTHS)]
        key = str(int(generator("pass_key", id).integers(10_000, 100_000)))
        fillers = (length - ROOM) // self.tokens(f" {FILLER}")
        before = round(depth * fillers)
        needle = f"The pass key is {key}. Remember that {key} is the pass key."
        parts = [*[FILLER] * before, needle, *[FILLER] * (fillers - before)]
        text = "A pass key is hidden in this text. " + " ".join(parts) + "\n"
        labels = {"depth": round(100 * depth), "begins": "The pass key is "}
        question = Question("What is the pass key?", (key,), f"{length} tokens", labels)
        return Example(self.context(text), ((question,),))

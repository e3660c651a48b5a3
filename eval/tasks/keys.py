"""Many keys with their numbers, of which two are asked for on one cache: multi-key retrieval (RULER's NIAH multi-key 2,
Hsieh et al. 2024, arXiv 2404.06654), in our own wording.
"""

import dataclasses
from typing import ClassVar

from eval.held_back import Padding
from eval.tasks.interface import Example, Question
from eval.text import TextTask, generator

KEYS = (
    *("anchor", "apple", "arrow", "basket", "bell", "blanket", "bottle", "bridge", "bucket", "button", "candle"),
    *("carpet", "castle", "chain", "chair", "cloud", "coin", "corner", "cup", "curtain", "desk", "door", "drum"),
    *("engine", "feather", "fence", "flag", "flower", "fork", "garden", "gate", "glass", "glove", "hammer", "hat"),
    *("island", "jacket", "kettle", "key", "ladder", "lamp", "leaf", "lemon", "letter", "map", "mirror", "mountain"),
    *("needle", "nest", "paper", "pencil", "pillow", "plate", "pocket", "pot", "ribbon", "ring", "river", "rope"),
    *("saddle", "shell", "shovel", "spoon", "stone", "table", "tent", "ticket", "tower", "train", "tree", "window"),
)
COUNTS = (16, 32, 64)
"""How many keys there are, in turn."""


@dataclasses.dataclass(frozen=True)
class Keys(TextTask):
    max_new_tokens: ClassVar[int] = 8
    padding: ClassVar[Padding] = Padding(prefix=(384, 768, 1280), question=32)

    def example(self, id: str) -> Example:
        """The example of this number."""
        rng, count = generator("keys", id), COUNTS[int(id) % len(COUNTS)]
        keys = [KEYS[i] for i in rng.permutation(len(KEYS))[:count]]
        numbers = [str(number) for number in rng.choice(9000, count, replace=False) + 1000]
        lines = (f"The number of the {key} is {number}.\n" for key, number in zip(keys, numbers, strict=True))
        asked = tuple(
            Question(
                f"What is the number of the {keys[at]}?",
                (numbers[at],),
                f"{count} keys",
                {"depth": round(100 * at / (count - 1)), "begins": f"The number of the {keys[at]} is "},
            )
            for at in map(int, rng.choice(count, 2, replace=False))
        )
        return Example(self.context("".join(lines)), (asked,))

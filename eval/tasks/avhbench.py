"""AVHBench: yes or no about what is seen and heard, and whether both belong together; for models that imagine things.

Source: https://github.com/kaist-ami/AVHBench, README.md (2410.18325): form of the file, the question as the whole
prompt, and the figures by task: accuracy, precision and recall of "yes", F1, and the share of answers that are "yes".
The program that read answers is not published: the first of the words yes and no counts, and an answer with neither is
wrong. The fourth task, captions, is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import yes_or_no
from eval.tasks.official import Asked, Benchmark, OfficialTask

CAPTIONS = "AV Captioning"


def _read(file: Entry) -> Iterator[Asked]:
    for entry in file.elements():
        if (task := entry.text("task")) != CAPTIONS:
            yield Asked(
                f"videos/{entry.text('video_id')}.mp4",
                entry.text("text"),
                (entry.one_of("label", ("Yes", "No")).lower(),),
                task,
            )


class AVHBench(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(files={"QA.json": _read}, prompt="{question}", parse=yes_or_no)

    @classmethod
    def figures(cls, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Precision, recall and F1 of "yes", and its share of all answers; 0 where nothing is divided by nothing."""
        said = [yes_or_no(row["answer"]) == "yes" for row in rows]
        right = ["yes" in row["references"] for row in rows]
        both = sum(a and b for a, b in zip(said, right, strict=True))
        return {
            "precision": both / max(1, sum(said)),
            "recall": both / max(1, sum(right)),
            "f1": 2 * both / max(1, sum(said) + sum(right)),
            "yes": sum(said) / len(rows),
        }

"""Video-MME with sound and without subtitles: multiple choice about clips of all lengths (2405.21075), 2,700 questions.

Sources: https://github.com/BradyFU/Video-MME, README.md: the prompt, and the program that reads answers
(eval_your_results.py, which VideoLLaMA2's eval_video_mcqa_videomme.py holds too); the published table's columns.
"""

from collections.abc import Iterator
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import first_letter
from eval.tasks.official import LETTERS, Asked, Benchmark, OfficialTask


def _read(file: Entry) -> Iterator[Asked]:
    for entry in file.elements():
        yield Asked(
            f"data/{entry.text('videoID')}.mp4",
            entry.text("question"),
            (entry.one_of("answer", LETTERS),),
            entry.text("duration"),
            entry.texts("options"),
            {key: entry.text(key) for key in ("domain", "sub_category", "task_type")},
        )


class VideoMME(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"videomme.json": _read},
        prompt=(
            "Select the best answer to the following multiple-choice question based on the video. Respond with only "
            "the letter (A, B, C, or D) of the correct option.\n{question}\n{choices}\nThe best answer is:"
        ),
        parse=first_letter,
    )

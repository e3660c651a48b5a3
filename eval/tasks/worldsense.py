"""WorldSense: multiple choice about clips whose sound matters, in 26 kinds of 3 domains (2502.04326), 3,172 questions.

Sources: https://github.com/JaaackHongggg/WorldSense, whose authors name VLMEvalKit for the evaluation:
vlmeval/dataset/worldsense.py (files, prompt with sound) and vlmeval/dataset/utils/worldsense.py (the letter in an
answer). Where no letter is in it, an option's words are looked for, as there without a judge.
"""

from collections.abc import Iterator
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import first_letter
from eval.tasks.official import LETTERS, Asked, Benchmark, OfficialTask


def _read(file: Entry) -> Iterator[Asked]:
    for video, about in file.members():
        for key, task in about.members():
            if key.startswith("task"):
                yield Asked(
                    f"videos/{video}.mp4",
                    task.text("question"),
                    (task.one_of("answer", LETTERS),),
                    task.text("task_domain"),
                    task.texts("candidates"),
                    {
                        "task_type": task.text("task_type"),
                        "domain": about.text("domain"),
                        "duration": about.text("duration"),
                        "audio_class": ", ".join(about.texts("audio_class")),
                    },
                )


class WorldSense(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"worldsense_qa.json": _read},
        prompt=(
            "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
            "option that accurately addresses the question.\nThese are the frames of a video and the corresponding "
            "audio. Select the best answer to the following multiple-choice question based on the video. Respond with "
            "only the letter (A, B, C, or D) of the correct option.\nQuestion: {question}\n{choices}\nAnswer: "
        ),
        parse=first_letter,
    )

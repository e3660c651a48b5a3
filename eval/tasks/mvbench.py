"""The ten tasks of MVBench that AccKV's paper reports (2511.11106), with sound: multiple choice, 200 questions each.

Sources: Li et al., MVBench (2311.17005); https://github.com/OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb: files,
parts of clips, prompt and how a choice is read out of an answer (check_ans). Its beginning of the answer ("Best
option:(") is left out: a chat model's answer begins with the answer.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import first_word_letter
from eval.tasks.official import Asked, Benchmark, OfficialTask

CLIPS = {
    "Action Sequence": "star/Charades_v1_480",
    "Action Prediction": "star/Charades_v1_480",
    "Unexpected Action": "FunQA_test/test",
    "Object Interaction": "star/Charades_v1_480",
    "Object Shuffle": "perception/videos",
    "Action Localization": "sta/sta_video",
    "Scene Transition": "scene_qa/video",
    "Action Count": "perception/videos",
    "State Change": "perception/videos",
    "Character Order": "perception/videos",
}
"""By task, where its clips lie below `video`."""

PARTS = ("Action Sequence", "Action Prediction", "Object Interaction", "Action Localization")
"""Tasks of which a part of each clip is shown."""


def _read(task: str, file: Entry) -> Iterator[Asked]:
    for entry in file.elements():
        choices = entry.texts("candidates")
        right = choices.index(entry.one_of("answer", choices))
        yield Asked(
            f"video/{CLIPS[task]}/{entry.text('video')}",
            entry.text("question"),
            (_letter(right),),
            task,
            choices,
            span=_span(entry) if task in PARTS else None,
        )


def _span(entry: Entry) -> tuple[float, float]:
    """In order, and at least a second long, as VideoLLaMA2's process_video takes them."""
    start, end = sorted(max(0.0, entry.seconds(key)) for key in ("start", "end"))
    return start, end if math.floor(1000 * end) > math.floor(1000 * start) else start + 1


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _listing(choices: Sequence[str]) -> str:
    return "\n".join(f"({_letter(number)}) {choice}" for number, choice in enumerate(choices))


class MVBench(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={f"json/{task.lower().replace(' ', '_')}.json": functools.partial(_read, task) for task in CLIPS},
        prompt=(
            "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement "
            "of objects, and the action and pose of persons. Based on your observations, select the best option that "
            "accurately addresses the question.\nQuestion: {question}\nOptions:\n{choices}\nOnly give the best option."
        ),
        parse=first_word_letter,
        listing=_listing,
    )

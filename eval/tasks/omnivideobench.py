"""OmniVideoBench: multiple choice that needs sight and hearing, up to 30 minutes long (2510.10689), 1,000 questions.

Source: https://github.com/NJU-LINK/OmniVideoBench, dataloader.py, eval/qwenomni_eval.py (prompt) and utils/utils.py
(what an answer is compared as). Its sampling (temperature 0.7) is off here.
"""

from collections.abc import Iterator
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import only_letter
from eval.tasks.official import LETTERS, Asked, Benchmark, OfficialTask


def _read(file: Entry) -> Iterator[Asked]:
    for video in file.elements():
        for entry in video.at("questions").elements():
            yield Asked(
                f"videos/{video.text('video')}.mp4",
                entry.text("question"),
                (entry.one_of("correct_option", LETTERS),),
                entry.text("audio_type"),
                entry.texts("options"),
                {"question_type": entry.text("question_type"), "video_type": video.text("video_type")},
            )


class OmniVideoBench(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"data.json": _read},
        prompt=(
            "You are given a video. Based on the content of the video, answer the following question:\n\n"
            "Question:\n{question}\n\nOptions:\n{choices}\n\n"
            "Answer with the option's letter directly(e.g., A, B, C, or D)."
            "If your access to the video content is limited, at least one option that is more likely than the others "
            "must be chosen.Mustn't give any other reason for can not choose!"
        ),
        parse=only_letter,
    )

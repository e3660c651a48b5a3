"""Daily-Omni: multiple choice about when what is seen and what is heard happen (2505.17862), 1,197 questions.

Source: https://github.com/Lliar-liar/Daily-Omni, test_model/Qwen2.5-Omni/testmodel.py: files, prompt, the letter that
an answer begins with, accuracy by type, category and duration. The prompt stands before the video there.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.letters import leading_letter
from eval.tasks.official import LETTERS, Asked, Benchmark, OfficialTask


def _read(file: Entry) -> Iterator[Asked]:
    for entry in file.elements():
        video = entry.text("video_id")
        yield Asked(
            f"Videos/{video}/{video}_video.mp4",
            entry.text("Question"),
            (entry.one_of("Answer", LETTERS),),
            entry.text("Type"),
            entry.texts("Choice"),
            {"category": entry.text("video_category"), "duration": entry.text("video_duration")},
        )


def _listing(choices: Sequence[str]) -> str:
    return f"{list(choices)}"


class DailyOmni(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"qa.json": _read},
        prompt=(
            "Your task is to accurately answer multiple-choice questions based on the given video.\nSelect the single "
            "most accurate answer from the given choices.\nQuestion: {question}\nChoices: {choices}\nYour answer "
            "should be a capital letter representing your choice: A, B, C, or D. Don't generate any other text."
        ),
        parse=leading_letter,
        listing=_listing,
    )

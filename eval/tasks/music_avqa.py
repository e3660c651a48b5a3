"""MUSIC-AVQA: free questions about clips of music, whose answers are of 42 kinds (2203.14072, test split, 9,129).

Sources: https://github.com/GeWu-Lab/MUSIC-AVQA, net_grd_avst/dataloader_avst.py (slots of a question are filled in
order) and main_avst.py (accuracy by type); VideoLLaMA2's eval_audio_video_AVQA.py, which compares answers of language
models, without case and full stop, with the right ones. Its model is trained to the bare question; for those that are
not, the prompt asks for a word. Numbers count in figures too, and `_` is a space.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from eval.metrics import CUT_OFF
from eval.tasks.entries import Entry
from eval.tasks.official import Asked, Benchmark, OfficialTask
from models.errors import UserError

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _read(file: Entry) -> Iterator[Asked]:
    for entry in file.elements():
        scenario, kind = _list(entry, "type", 2)
        slots = entry.text("question_content")
        values = iter(_list(entry, "templ_values", slots.count("<")))
        question = re.sub(r"<\w+>", lambda _, values=values: next(values).replace("_", " "), slots)
        yield Asked(
            f"video/{entry.text('video_id')}.mp4",
            question.replace("\uff1f", "?").strip(),
            (plain(entry.text("anser")),),
            f"{scenario} {kind}",
            labels={"scenario": scenario},
        )


def _list(entry: Entry, key: str, length: int) -> list[str]:
    """A list that is written as a text."""
    try:
        found = json.loads(entry.text(key))
    except ValueError:
        found = None
    if not isinstance(found, list) or len(found) != length or not all(isinstance(text, str) for text in found):
        raise UserError(f"{entry.place}, {key!r} must be {length} texts, not {entry.text(key)}; copy the file again.")
    return found


def plain(answer: str, choices: Sequence[str] = ()) -> str:
    """An answer without case, full stop and underscores, and with numbers as words."""
    words = answer.removesuffix(CUT_OFF).rstrip(" .").lower().replace("_", " ")
    return NUMBERS[int(words)] if words in map(str, range(len(NUMBERS))) else words


class MusicAvqa(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"avqa-test.json": _read},
        prompt="{question}\nAnswer the question using a single word or phrase.",
        parse=plain,
    )

"""AVSD: the last question of a dialogue about a clip, after all turns before it; ROUGE-L with up to six references.

Sources: Alamri et al., Audio-Visual Scene-Aware Dialog (1901.09107);
https://github.com/ankitshah009/AVSD-DSTC10_baseline for the test file (1,804 dialogues) and its scores
(dstc10avsd_eval/evaluation/evaluate.py, the last turn alone), of which this is ROUGE-L. There are no captions: the
model sees and hears the clip. The dialogue is the model's own chat, turn by turn, as in PAVE's eval_pave_avsd.py.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from eval.tasks.entries import Entry
from eval.tasks.official import Asked, Benchmark, OfficialTask
from models.errors import UserError

WITHHELD = "__UNDISCLOSED__"


def _read(file: Entry) -> Iterator[Asked]:
    for dialogue in file.at("dialogs").elements():
        *before, last = dialogue.at("dialog").elements()
        references = last.texts("answer") if isinstance(last.at("answer").value, list) else (last.text("answer"),)
        if WITHHELD in references:
            raise UserError(f"{last.place} has no answer but {WITHHELD}; take the file with the references.")
        yield Asked(
            f"videos/{dialogue.text('image_id')}.mp4",
            last.text("question"),
            references,
            "dialogue",
            labels={"turns": len(before) + 1},
            history=tuple((turn.text("question"), turn.text("answer")) for turn in before),
        )


def _whole(answer: str, choices: Sequence[str]) -> str:
    return answer


class Avsd(OfficialTask):
    benchmark: ClassVar[Benchmark] = Benchmark(
        files={"test_set4DSTC10-AVSD_multiref+reason.json": _read}, prompt="{question}", parse=_whole
    )
    metric: ClassVar[str] = "rouge_l"
    max_new_tokens: ClassVar[int] = 64

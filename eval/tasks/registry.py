"""All benchmark tasks, by name."""

from eval.composed import ComposedTask
from eval.tasks.clips import Clips
from eval.tasks.clips_full import ClipsFull
from eval.tasks.dialogues import Dialogues
from eval.tasks.interface import Task
from eval.tasks.keys import Keys
from eval.tasks.needles import Needles
from eval.tasks.pass_key import PassKey
from eval.tasks.perplexity import Perplexity
from eval.tasks.transcripts import Transcripts

COMPOSED: dict[str, type[ComposedTask]] = {
    "dialogues": Dialogues,
    "needles": Needles,
    "transcripts": Transcripts,
}
TASKS: dict[str, type[Task]] = {
    "clips": Clips,
    "clips_full": ClipsFull,
    "keys": Keys,
    "pass_key": PassKey,
    "perplexity": Perplexity,
    **COMPOSED,
    **{f"{name}_without_sound": task.without("audio") for name, task in COMPOSED.items()},
    **{f"{name}_without_pictures": task.without("video") for name, task in COMPOSED.items()},
}

"""All benchmark tasks, by name."""

from eval.tasks.clips import Clips
from eval.tasks.clips_full import ClipsFull
from eval.tasks.interface import Task

TASKS: dict[str, type[Task]] = {
    "clips": Clips,
    "clips_full": ClipsFull,
}

"""The tasks by name."""

from collections.abc import Callable

from models.errors import UserError
from train.mergenet.tasks.answers import Answers
from train.mergenet.tasks.bert import Questions, Reviews
from train.mergenet.tasks.interface import Task
from train.mergenet.tasks.retrieval import Retrieval
from train.mergenet.tasks.spec import TaskSpec

TASKS: dict[str, Callable[[TaskSpec], Task]] = {
    "reviews": Reviews,
    "questions": Questions,
    "vqa": Answers,
    "retrieval": Retrieval,
}


def make_task(spec: TaskSpec) -> Task:
    """The task of a specification.

    Raises:
        UserError: if there is no such task, or its model cannot be made.
    """
    if spec.task not in TASKS:
        raise UserError(f"There is no task {spec.task!r}; take one of {', '.join(TASKS)}.")
    return TASKS[spec.task](spec)

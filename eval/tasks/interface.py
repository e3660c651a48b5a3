"""What a benchmark task is: examples, their prompts, and what counts as right. docs/add_a_task.md shows one."""

import abc
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import models
from acckv_jax import CachePolicy
from eval import held_back
from eval.held_back import Model, Padding, Said
from eval.metrics import METRICS
from models.interface import EmbeddedPrompt

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its right answers.

    Attributes:
        text: as it is asked.
        references: right answers, one or more.
        group: the column of the results that it counts for.
        labels: further facts for tables, written beside the answer.
        choices: what there is to choose from; none where the answer is free.
        history: questions with their answers that a dialogue had before this one.
    """

    text: str
    references: tuple[str, ...]
    group: str
    labels: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Example:
    """Questions that share a prefix, which is read once.

    Attributes:
        prefix: an `EmbeddedPrompt` of all that precedes the questions; or what the task's own `answers` wants.
        conversations: questions that follow each other on one cache. The cache is pruned for the first of them. Each
            conversation begins anew from the prefix, and all have equally many turns.
    """

    prefix: Any
    conversations: tuple[tuple[Question, ...], ...]

    def __post_init__(self) -> None:
        if len({len(conversation) for conversation in self.conversations}) != 1 or not self.conversations[0]:
            raise ValueError("an example needs one or more conversations, of equally many turns.")


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """A benchmark task. A new one is a file with a subclass, and a line in `eval.tasks.TASKS`.

    Attributes:
        model: the model that is asked.
        default_model: name of the model where the user gives none.
        metric: a key of `METRICS`; or any name, if the task has a `score` of its own.
        max_new_tokens: most tokens of an answer, its end included.
        padding: lengths that prompts are padded to.
        policy_options: options of policies, set where a policy has them and the user gives none.
        full_only: whether the task asks the full cache alone, and takes no policies.
    """

    model: Model

    default_model: ClassVar[str] = "smolav"
    metric: ClassVar[str] = "exact_match"
    max_new_tokens: ClassVar[int] = 16
    padding: ClassVar[Padding] = Padding()
    policy_options: ClassVar[Mapping[str, Any]] = {"evict_every": 0}
    full_only: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """The task with the model of this name or folder, over the user's data if it needs any.

        Raises:
            UserError: if something cannot be had.
        """

    @classmethod
    def kv_heads(cls, model: str) -> int:
        """KV heads of the model of this name or folder, which a mesh may divide; reads its configuration alone.

        Raises:
            UserError: if there is no such model.
        """
        return models.kv_heads(model)

    @property
    @abc.abstractmethod
    def ids(self) -> Sequence[str]:
        """The names of all examples, always in this order."""

    @abc.abstractmethod
    def example(self, id: str) -> Example:
        """Reads an example.

        Raises:
            UserError: if it cannot be read. The results then hold the sentence, and the run continues.
        """

    def prompt(self, asked: Sequence[Question]) -> EmbeddedPrompt:
        """The tokens of the last question of `asked`; those before it were answered with their first reference.

        A question's history comes before it, turn by turn.
        """
        *before, question = asked
        answer, prompt = before[-1].references[0] if before else None, None
        for text, next_answer in (*question.history, (question.text, None)):
            encode = (
                self.model.encode_question
                if answer is None
                else functools.partial(self.model.encode_next_question, answer)
            )
            prompt = encode(text) if prompt is None else prompt.then(encode(text))
            answer = next_answer
        assert prompt is not None
        return prompt

    def answers(
        self, example: Example, policies: Mapping[Name, CachePolicy], wanted: Collection[Name]
    ) -> Iterator[tuple[Name, list[Said]]]:
        """What the model says under each wanted policy, by conversation.

        A task that answers otherwise, without pruned caches, overrides this.

        Args:
            example: the example.
            policies: all policies of the run, by name.
            wanted: names of those that have not answered yet.
        """
        turns = range(len(example.conversations[0]))
        prompts = [[self.prompt(asked[: turn + 1]) for asked in example.conversations] for turn in turns]
        return held_back.answers(
            self.model, example.prefix, prompts, policies, wanted, self.padding, self.max_new_tokens
        )

    def score(self, answer: str, question: Question) -> float:
        """The metric of one answer."""
        return METRICS[self.metric](answer, question.references)

    @classmethod
    def figures(cls, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
        """What is told of answers beside the mean of their scores, by name; nothing, unless a task overrides this.

        Args:
            rows: one or more answers as they are written, with their "answer" and "references".
        """
        return {}

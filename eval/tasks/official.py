"""Official benchmarks, read from a local folder: what they have in common. docs/tasks.md says what each folder holds.

A benchmark differs from another by its data, a `Benchmark`. Every question of a clip is asked first once, as its
authors do; and where a clip has several, each is also asked after another one on the cache that was pruned for that
one, which the results count apart (turn 2). Media come before all text, whatever the authors' order, so that a clip is
read once.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import models
from acckv_jax import Modality
from eval.held_back import Padding
from eval.metrics import METRICS
from eval.tasks.entries import Entry
from eval.tasks.interface import Example, Question, Task
from models.errors import UserError
from models.interface import AVModel
from models.media.clip import Span

LETTERS = ("A", "B", "C", "D")
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question of an annotation file.

    Attributes:
        clip: its file, below the folder.
        question: without the prompt around it.
        references: right answers, as `Benchmark.parse` returns them.
        group: the column of the results that it counts for.
        choices: what there is to choose from; none where the answer is free.
        labels: what else the authors report results by.
        history: questions and answers of the dialogue before it.
        span: the seconds of the clip that are shown; None is all of it.
    """

    clip: str
    question: str
    references: tuple[str, ...]
    group: str
    choices: tuple[str, ...] = ()
    labels: Mapping[str, str | int] = dataclasses.field(default_factory=dict)
    history: tuple[tuple[str, str], ...] = ()
    span: Span | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What distinguishes a benchmark from the others.

    Attributes:
        files: its annotation files below the folder, and what reads the questions of each. Of several files questions
            are taken in turn, so that the first examples are of all of them.
        prompt: what is asked, with {question} and {choices} in it.
        parse: from an answer and the choices to what is compared with the references.
        listing: how choices stand in the prompt.
    """

    files: Mapping[str, Callable[[Entry], Iterable[Asked]]]
    prompt: str
    parse: Callable[[str, Sequence[str]], str]
    listing: Callable[[Sequence[str]], str] = "\n".join

    def read(self, folder: Path | None) -> dict[str, tuple[Asked, ...]]:
        """The questions about each clip, or part of a clip, in the order of the files.

        Raises:
            UserError: if a file is missing or of another form, or no clip at all is there.
        """
        files = " and ".join(itertools.islice(self.files, 2)) + " and others" * (len(self.files) > 2)
        if folder is None or not folder.is_dir():
            where = "name its folder with --data" if folder is None else f"there is no folder {folder}"
            raise UserError(f"This task reads {files} and clips: {where} (docs/tasks.md describes it).")
        missing = [name for name in self.files if not (folder / name).is_file()]
        if missing:
            raise UserError(f"There is no file {folder / missing[0]}; docs/tasks.md describes the folder for --data.")
        read = [list(read(Entry.read(folder / name))) for name, read in self.files.items()]
        clips: dict[str, list[Asked]] = {}
        for asked in itertools.chain.from_iterable(itertools.zip_longest(*read)):
            if asked is not None:
                part = "" if asked.span is None else f"@{asked.span[0]:g}-{asked.span[1]:g}"
                clips.setdefault(asked.clip + part, []).append(asked)
        if not any(_file(folder, asked[0]).exists() for asked in clips.values()):
            first = next(iter(clips.values()))[0]
            raise UserError(
                f"None of the {len(clips)} clips is there, such as {folder / first.clip}; docs/tasks.md says where "
                "they come from."
            )
        return {id: tuple(asked) for id, asked in clips.items()}


def _file(folder: Path, asked: Asked) -> Path:
    """A clip's file, also if it has another suffix than the annotations say."""
    named = folder / asked.clip
    return next((path for path in map(named.with_suffix, SUFFIXES) if path.exists()), named)


@dataclasses.dataclass(frozen=True)
class OfficialTask(Task):
    """A task that reads a `Benchmark`; an example is a clip with all questions about it."""

    model: AVModel
    folder: Path
    clips: Mapping[str, tuple[Asked, ...]]

    benchmark: ClassVar[Benchmark]
    metric: ClassVar[str] = "accuracy"
    padding: ClassVar[Padding] = Padding(rows=4)

    @classmethod
    def load(cls, model: str, data: Path | None) -> Self:
        """The benchmark in a folder, and a model; the folder is read first.

        Raises:
            UserError: if the folder is not as docs/tasks.md describes it, or the model cannot be loaded.
        """
        clips = cls.benchmark.read(data)
        assert data is not None
        return cls(models.load(model), data, clips)

    @property
    def ids(self) -> Sequence[str]:
        """Clips as the annotations name them, with @START-END where a part is shown."""
        return list(self.clips)

    def example(self, id: str) -> Example:
        """A clip's pictures and sound, and its questions, each followed by another one."""
        asked = self.clips[id]
        prefix = models.encode(self.model, _file(self.folder, asked[0]), span=asked[0].span).prompt
        heard = {"sound": "yes" if prefix.count(Modality.AUDIO) else "no"}
        questions = [self._question(one, heard) for one in asked]
        if len(questions) == 1:
            return Example(prefix, (tuple(questions),))
        return Example(prefix, tuple(zip(questions, [*questions[1:], questions[0]], strict=True)))

    def _question(self, asked: Asked, heard: Mapping[str, str]) -> Question:
        listed = self.benchmark.listing(asked.choices)
        text = self.benchmark.prompt.format(question=asked.question, choices=listed)
        labels = {**asked.labels, **heard}
        return Question(text, asked.references, asked.group, labels, asked.choices, asked.history)

    def score(self, answer: str, question: Question) -> float:
        """The metric of what `Benchmark.parse` finds in an answer."""
        return METRICS[self.metric](self.benchmark.parse(answer, question.choices), question.references)

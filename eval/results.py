"""Answers of a benchmark in a file of JSON lines, which a run that was killed at any moment continues.

The first line says whose answers they are, and each further line is one answer, or an example that cannot be asked. The
first line comes with the first answers, so that a run which fails before has said nothing about the file.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval import json_lines
from eval.json_lines import Lines, as_line
from models.devices import from_first
from models.errors import UserError

Row = dict[str, Any]
ANSWER = (
    "example",
    "policy",
    "budget",
    "question",
    "of",
    "turn",
    "group",
    "answer",
    "references",
    "score",
    "bytes",
    "labels",
)
ERROR = ("example", "error")


class Variant(NamedTuple):
    """A policy at a budget, both as written in the results; 1 is a number of slots, and 1.0 a fraction."""

    policy: str
    budget: str

    def __str__(self) -> str:
        return f"{self.policy} at budget {self.budget}"


class Results:
    """Answers, each once."""

    def __init__(self, lines: Lines | None = None, heading: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keeps answers in memory, and appends them to a file if there is one, the first of them after `heading`."""
        self._lines = lines
        self._heading = heading
        self._answers: dict[tuple[str, Variant], dict[int, Row]] = {}
        self.errors: dict[str, str] = {}
        """Why an example could not be asked when it last was; void as soon as it is answered."""

    def unanswered(self, example: str, variants: Iterable[Variant]) -> list[Variant]:
        """The variants that have not answered all questions of an example."""
        return [variant for variant in variants if not self._complete(example, variant)]

    def _complete(self, example: str, variant: Variant) -> bool:
        rows = self._answers.get((example, variant), {})
        return len(rows) > 0 and len(rows) == next(iter(rows.values()))["of"]

    def of(self, example: str, variant: Variant) -> list[Row]:
        """Answers to an example's questions, in their order."""
        return [row for _, row in sorted(self._answers.get((example, variant), {}).items())]

    def add(self, rows: Iterable[Row]) -> None:
        """Adds those rows that are not there yet, to the file too; an error takes the place of the one before.

        Raises:
            OSError: if the file cannot take them; it keeps what it had, and a later run continues there.
        """
        new = [row for row in rows if self._keep(row)]
        if self._lines is not None and new:
            self._lines.append([*self._heading, *new])
            self._heading = ()

    def share(self) -> None:
        """In several processes: adds what the first one has."""
        rows = [row for answers in self._answers.values() for row in answers.values()]
        for row in from_first([*rows, *({"example": id, "error": text} for id, text in self.errors.items())]):
            self._keep(row)

    def _keep(self, row: Row) -> bool:
        if "error" in row:
            new = self.errors.get(row["example"]) != row["error"]
            self.errors[row["example"]] = row["error"]
            return new
        variant = Variant(row["policy"], json.dumps(row["budget"]))
        rows = self._answers.setdefault((row["example"], variant), {})
        return rows.setdefault(row["question"], row) is row


@contextlib.contextmanager
def opened(path: Path | None, about: Mapping[str, Any]) -> Iterator[Results]:
    """The answers that a file holds, to be continued; the torn last line of a killed run is dropped.

    Args:
        path: the file, or None to keep answers in memory.
        about: what all answers of a file have in common, ready for JSON.

    Raises:
        UserError: if the file holds something else, another run is writing to it, or it cannot be opened.
    """
    if path is None:
        yield Results()
        return
    with json_lines.opened(path, "answers") as lines:
        first, *rest = lines.before or [as_line(about)]
        if not lines.before and not first.startswith(lines.torn):
            raise UserError(f"{path} holds no answers of a benchmark; name another file.")
        _check_about(path, first, about)
        results = Results(lines, [] if lines.before else [about])
        for number, line in enumerate(rest, 2):
            results._keep(_parsed(path, number, line))
        yield results


def _check_about(path: Path, line: bytes, about: Mapping[str, Any]) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "task" not in found:
        raise UserError(f"{path} holds no answers of a benchmark; name another file.")
    for key, wanted in json.loads(as_line(about)).items():
        if found.get(key) != wanted:
            raise UserError(f"{path} holds answers of {key} {found.get(key)}, not {wanted}; name another file.")


def _parsed(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or tuple(row) not in (ANSWER, ERROR):
        raise UserError(f"Line {number} of {path} is no answer; delete it, and its question will be asked again.")
    return row

"""Annotation files of benchmarks, read so that whatever is missing in them is a sentence that names the place."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from models.errors import UserError
from models.readers.json_object import read_text

Value = TypeVar("Value")


class Entry:
    """A value of an annotation file, which knows where it stands.

    Attributes:
        value: as parsed from JSON.
        place: the file, and the keys and numbers that lead here.
    """

    def __init__(self, value: Any, place: str) -> None:
        self.value = value
        self.place = place

    @classmethod
    def read(cls, file: Path) -> "Entry":
        """All that a file of JSON holds; of JSON lines (.jsonl) a list of the lines that are not empty.

        Raises:
            UserError: if it cannot be read, or is no JSON; of JSON lines it names the line.
        """
        text = read_text(file)
        if file.suffix != ".jsonl":
            return cls(_parsed(text, f"{file}"), f"{file}")
        lines = enumerate(text.split("\n"), 1)  # other ends of lines than this may stand inside of texts
        return cls([_parsed(line, f"{file}, line {number},") for number, line in lines if line.strip()], f"{file}")

    def at(self, key: str) -> "Entry":
        """What stands at a key."""
        if not isinstance(self.value, dict) or key not in self.value:
            raise UserError(f"{self.place} has no {key!r}; docs/tasks.md says which file this task reads.")
        return Entry(self.value[key], f"{self.place}, {key!r}")

    def elements(self) -> "list[Entry]":
        """What a list holds, one or more."""
        return [Entry(value, f"{self.place}, entry {number}") for number, value in enumerate(self._is(list), 1)]

    def members(self) -> "Iterator[tuple[str, Entry]]":
        """What an object holds, one or more, by key."""
        return ((key, self.at(key)) for key in self._is(dict))

    def text(self, key: str) -> str:
        """A text that is not empty."""
        return self.at(key)._is(str)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, one or more."""
        return tuple(element._is(str) for element in self.at(key).elements())

    def seconds(self, key: str) -> float:
        """A number."""
        found = self.at(key)
        return float(found.value if type(found.value) is int else found._is(float))

    def one_of(self, key: str, choices: Sequence[str]) -> str:
        """A text that is one of several."""
        found = self.text(key)
        if found not in choices:
            raise UserError(f"{self.place}, {key!r} is {found!r}, and not one of {', '.join(map(repr, choices))}.")
        return found

    def _is(self, kind: type[Value]) -> Value:
        if not isinstance(self.value, kind) or (not self.value and kind is not float):
            name = {str: "text", list: "list", dict: "object", float: "number"}[kind]
            raise UserError(f"{self.place} is no {name} with something in it; docs/tasks.md says which file is read.")
        return self.value


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not readable JSON ({error}); copy it again from where it came from.") from error

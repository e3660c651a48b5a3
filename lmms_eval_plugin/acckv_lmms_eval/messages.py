"""Messages of lmms-eval as media files and turns of a chat."""

import contextlib
import tempfile
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.errors import UserError
from models.media.clip import MAX_SECONDS, Span


class Medium(NamedTuple):
    """A file that is shown, and the part of it; None is all of it."""

    file: str
    span: Span | None = None


class Chat(NamedTuple):
    """What a model is asked.

    Attributes:
        media: shown before all text, in order.
        turns: questions with their answers, but for the last one, which has none.
    """

    media: tuple[Medium, ...]
    turns: tuple[tuple[str, str | None], ...]


@contextlib.contextmanager
def chat_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[Chat]:
    """A chat; pictures and sounds that are no files become files for as long as it is used.

    A system message becomes the beginning of the first question: the models have system prompts of their own.

    Raises:
        UserError: if the messages do not alternate from the user to the user, or show media after the first question.
    """
    *system, _ = [message for message in messages if message["role"] == "system"] + [None]
    spoken = [message for message in messages if message["role"] != "system"]
    if [message["role"] for message in spoken] != [("user", "assistant")[n % 2] for n in range(len(spoken))]:
        raise UserError("The messages of a document must begin with the user's, and then take turns.")
    if len(spoken) % 2 == 0:
        raise UserError("The last message of a document must be the user's.")
    texts = [_text(message) for message in (*system, *spoken)]
    texts[len(system)] = "\n".join(texts[: len(system) + 1])
    said = [*texts[len(system) :], None]
    if any(_media(message) for message in (*system, *spoken[1:])):
        raise UserError("Media are shown with the first question only; a later message of the document has some.")
    with tempfile.TemporaryDirectory() as folder:
        media = tuple(_medium(part, Path(folder) / f"{n}") for n, part in enumerate(_media(spoken[0])))
        yield Chat(media, tuple(zip(said[::2], said[1::2], strict=True)))


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text(message: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text")


def _media(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [part for part in _parts(message) if part["type"] != "text"]


def _medium(part: Mapping[str, Any], path: Path) -> Medium:
    """A medium as a file: its own, or `path` with a suffix."""
    source, start, end = part["url"], part.get("start_time"), part.get("end_time")
    if isinstance(source, Mapping) and "array" in source:
        return Medium(_write_sound(path.with_suffix(".wav"), source["array"], source["sampling_rate"]))
    if isinstance(source, Mapping):
        start, end = source.get("video_start", start), source.get("video_end", end)
        source = source.get("path") or source.get("url") or source.get("video")
    if hasattr(source, "save"):  # a picture of Pillow
        source.save(path.with_suffix(".png"))
        source = path.with_suffix(".png")
    if not isinstance(source, str | Path):
        raise UserError(f"A {part['type']} of type {type(source).__name__} cannot be shown; give the path of a file.")
    if start is None and end is None:
        return Medium(f"{source}")
    return Medium(f"{source}", (float(start or 0), float(MAX_SECONDS if end is None else end)))


def _write_sound(path: Path, samples: Any, rate: int) -> str:
    """Samples in [-1, 1], of one channel, as a WAV file."""
    with wave.open(f"{path}", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes((np.clip(np.asarray(samples, np.float64), -1, 1) * 32767).astype("<i2").tobytes())
    return f"{path}"

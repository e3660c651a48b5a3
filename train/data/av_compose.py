"""av_compose: a benchmark of composed clips of 10 to 120 seconds, from pictures and recordings that no training saw.

Three sets: `dialogues` (four questions on one cache, of four kinds), `transcripts` (all that is heard, all that is
shown, 10 to 60 words), `needles` (one fact at a chosen depth). Every example follows from its set, split and number;
`train.data.av_compose_tfds` keeps them on disk.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from models.media.clip_writer import write_clip
from train.data.clips import Clip, ClipConfig, PictureSpan, clip_at, draw_sound
from train.data.questions import CATEGORIES, Kind, Question, converse, questions
from train.data.sources import Sources, cifar10, load_sources

VERSION = "1.0.0"
Set = Literal["dialogues", "transcripts", "needles"]
SETS: tuple[Set, ...] = ("dialogues", "transcripts", "needles")
COUNTS = {"validation": 200, "test": 1000}
"""Examples of each set, by split."""
SEEDS = {"validation": 30_000, "test": 40_000}
SECONDS = (10, 120)

TURNS: tuple[Kind, ...] = ("video", "audio", "audio_visual", "synchrony")
"""Kinds in a dialogue; each of a clip's four dialogues begins with another one, so every kind has every turn."""
DIALOGUES = ClipConfig(SECONDS, items=(5, 10))
SPOKEN = {"digits": 1.0, "instruments": 0.0, "mixed": 0.5}
"""What is heard in transcripts, in turn: the probability of a digit."""
TRANSCRIPTS = ClipConfig(SECONDS, items=(10, 60), repeats=True, silent=0.0)
Place = Literal["sound", "picture", "both"]
PLACES: tuple[Place, ...] = ("sound", "picture", "both")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NEEDLES = {
    # One spoken digit among instruments.
    "sound": ClipConfig(SECONDS, items=(6, 40), repeats=True, silent=0.0, digits=0.0),
    # One vehicle among animals.
    "picture": ClipConfig(SECONDS, items=(6, 40), repeats=True, pictures=CATEGORIES["animal"]),
    # The digit spoken while that vehicle is shown, among other digits.
    "both": ClipConfig(SECONDS, items=(6, 40), repeats=True, silent=0.0, digits=1.0, pictures=CATEGORIES["animal"]),
}


@dataclasses.dataclass(frozen=True)
class Example:
    """A composed clip and what is asked about it.

    Attributes:
        clip: the clip.
        conversations: questions that follow each other; each conversation begins anew.
        group: transcripts: what is heard (`SPOKEN`); needles: where the fact is (`PLACES`); else the set.
        depth: needles: part of the things shown that come before it, 0 to 1; else -1.
    """

    clip: Clip
    conversations: tuple[tuple[Question, ...], ...]
    group: str
    depth: float = -1.0


@functools.cache
def sources_of(split: str) -> Sources:
    """Pictures and recordings of a split; all but "train" are unseen in training."""
    return load_sources(split)


def compose(name: Set, split: str, number: int, sources: Sources) -> Example:
    """Example `number` of a set and split.

    Args:
        name: the set.
        split: "validation" or "test".
        number: of the example, from 0 on without an end.
        sources: of the split.
    """
    makers = {"dialogues": _dialogues, "transcripts": _transcripts, "needles": _needle}
    return makers[name](SEEDS[split] + 1000 * SETS.index(name), number, sources)


def _dialogues(seed: int, number: int, sources: Sources) -> Example:
    for attempt in range(100):  # few clips lack questions for four dialogues that give no answer away
        rng = np.random.default_rng([seed, number, attempt])
        clip = clip_at(int(rng.integers(1 << 31)), 0, sources, DIALOGUES)
        asked = questions(clip, None, TURNS)
        found = []
        for first in range(len(TURNS)):
            kinds = TURNS[first:] + TURNS[:first]
            shuffled = [asked[i] for i in rng.permutation(len(asked))]
            found.append(_one_of_each(kinds, shuffled))
        if all(len(conversation) == len(TURNS) for conversation in found):
            return Example(clip, tuple(found), "dialogues")
    raise AssertionError(f"no dialogues in 100 clips of seed {seed}, number {number}")


def _one_of_each(kinds: Sequence[Kind], asked: Sequence[Question]) -> tuple[Question, ...]:
    """A question of each kind in this order, none of which the ones before give away, as far as there are any."""
    turns: tuple[Question, ...] = ()
    for kind in kinds:
        for question in asked:
            if question.kind == kind and len(converse([*turns, question], len(kinds))[0]) > len(turns):
                turns = (*turns, question)
                break
    return turns


def _transcripts(seed: int, number: int, sources: Sources) -> Example:
    group = list(SPOKEN)[number % len(SPOKEN)]
    clip = clip_at(seed, number, sources, dataclasses.replace(TRANSCRIPTS, digits=SPOKEN[group]))
    return Example(clip, tuple((question,) for question in questions(clip, None, ("transcript",))), group)


def _needle(seed: int, number: int, sources: Sources) -> Example:
    place, depth = PLACES[number % len(PLACES)], DEPTHS[number // len(PLACES) % len(DEPTHS)]
    config, rng = NEEDLES[place], np.random.default_rng([seed, number, 1])
    clip = clip_at(seed, number, sources, config)
    at = round(depth * (len(clip.pictures) - 1))
    span = clip.pictures[at]
    if place == "sound":
        digit = draw_sound(rng, sources, config, "digit", (span.start, span.end))
        sounds = tuple(digit if sound.start >= span.start and sound.end <= span.end else sound for sound in clip.sounds)
        clip = dataclasses.replace(clip, sounds=sounds)
    else:
        vehicle = str(rng.choice(CATEGORIES["vehicle"]))
        label = sources.picture_names.index(vehicle)
        picture = int(rng.choice(np.flatnonzero(sources.picture_labels == label)))
        shown = PictureSpan(picture, vehicle, span.start, span.end)
        clip = dataclasses.replace(clip, pictures=(*clip.pictures[:at], shown, *clip.pictures[at + 1 :]))
    [question] = [question for question in questions(clip, None, (*TURNS, "category")) if _asks(question, place)]
    return Example(clip, ((question,),), place, depth)


def _asks(question: Question, place: Place) -> bool:
    """Whether this is the question about the needle: no other of its subkind has an answer that is unique."""
    if place == "both":
        return question.subkind == "number_while_picture" and question.named[0] in CATEGORIES["vehicle"]
    return question.subkind == {"sound": "number", "picture": "vehicle"}[place]


def frames(clip: Clip, split: str) -> UInt8[np.ndarray, "seconds 32 32 3"]:
    """The pictures of a clip, one a second."""
    return cifar10.load(split).images[clip.picture_ids]


def file_of(clip: Clip, split: str, sources: Sources) -> bytes:
    """The clip as a Matroska file, lossless: FFV1 at one frame a second, FLAC at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        write_clip(path, frames(clip, split), 1, clip.audio(sources), lossless=True)
        return path.read_bytes()


def record(name: Set, split: str, number: int, sources: Sources) -> dict[str, Any]:
    """An example as `train.data.av_compose_tfds` keeps it: its file, its questions, and what happens when."""
    example = compose(name, split, number, sources)
    clip = example.clip
    keys = {"digit": sources.digits.keys, "instrument": sources.instruments.keys}
    return {
        "id": f"{split}-{number}",
        "clip": file_of(clip, split, sources),
        "seconds": clip.seconds,
        "group": example.group,
        "depth": example.depth,
        "questions": [
            {
                "conversation": index,
                "kind": question.kind,
                "subkind": question.subkind,
                "text": question.text,
                "answer": question.answer,
            }
            for index, conversation in enumerate(example.conversations)
            for question in conversation
        ],
        "shown": [dataclasses.asdict(span) for span in clip.pictures],
        "heard": [
            {
                "kind": span.kind,
                "recording": keys[span.kind][span.recording],
                "name": span.name,
                "start": span.start,
                "end": span.end,
            }
            for span in clip.sounds
        ],
    }


@dataclasses.dataclass(frozen=True)
class Records(Sequence[dict[str, Any]]):
    """The examples of a set, each composed when it is asked for."""

    name: Set
    split: str = "test"

    def __len__(self) -> int:
        return COUNTS[self.split]

    def __getitem__(self, number: Any) -> dict[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return record(self.name, self.split, int(number), sources_of(self.split))

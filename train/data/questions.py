"""Questions about composed clips, with answers of one word, of three kinds: video, audio, audio-visual."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from train.data.clips import Clip, PictureSpan, SoundKind, SoundSpan

Kind = Literal["video", "audio", "audio_visual"]

# What fills {order}.
ORDINALS = ("first", "second", "third", "fourth")

# The first phrasing of each list is the one used for validation and test; training draws from all. {cue} is filled with
# the name of what marks the moment: the picture on screen, or what is heard.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "what": ("What is shown?", "What is on screen?", "What does the picture show?"),
    "what_order": ("What is shown {order}?", "What is the {order} thing on screen?", "What is the {order} picture of?"),
    "number": ("Which number is spoken?", "What number is spoken?", "Which number do you hear?"),
    "number_order": (
        "Which number is spoken {order}?",
        "What is the {order} number that is spoken?",
        "Which number do you hear {order}?",
    ),
    "instrument": ("Which instrument plays?", "What instrument plays?", "Which instrument do you hear?"),
    "instrument_order": (
        "Which instrument plays {order}?",
        "What is the {order} instrument that plays?",
        "Which instrument do you hear {order}?",
    ),
    "picture_while_number": (
        "What is on screen while the number {cue} is spoken?",
        "What is shown while {cue} is spoken?",
        "What do you see when someone says {cue}?",
    ),
    "picture_while_instrument": (
        "What is on screen while the {cue} plays?",
        "What is shown while the {cue} plays?",
        "What do you see when the {cue} plays?",
    ),
    "number_while_picture": (
        "Which number is spoken while the {cue} is shown?",
        "Which number do you hear while the {cue} is on screen?",
        "What number is spoken when the {cue} is shown?",
    ),
    "instrument_while_picture": (
        "Which instrument plays while the {cue} is shown?",
        "Which instrument do you hear while the {cue} is on screen?",
        "What instrument plays when the {cue} is shown?",
    ),
}
# Answer words by subkind, for chance levels and confusion tables.
ANSWERS: dict[str, Literal["picture", "digit", "instrument"]] = {
    "what": "picture",
    "what_order": "picture",
    "picture_while_number": "picture",
    "picture_while_instrument": "picture",
    "number": "digit",
    "number_order": "digit",
    "number_while_picture": "digit",
    "instrument": "instrument",
    "instrument_order": "instrument",
    "instrument_while_picture": "instrument",
}


@dataclass(frozen=True)
class Question:
    """A question about a clip.

    Attributes:
        kind: what must be looked at: video, audio, or both.
        subkind: a key of PHRASINGS and of ANSWERS.
        text: the question.
        answer: one lower-case word.
    """

    kind: Kind
    subkind: str
    text: str
    answer: str


def _orders(count: int) -> list[tuple[int, str]]:
    """Returns (position, word) for what can be asked about `count` things in a row."""
    orders = [(i, ORDINALS[i]) for i in range(min(count, len(ORDINALS)))]
    return [*orders, (count - 1, "last")] if count > 1 else []


def _in_order(kind: Kind, subkind: str, spans: list[PictureSpan] | list[SoundSpan]) -> list[tuple[Kind, str, str, str]]:
    """Questions about things in their order; one thing alone is asked for without an order."""
    if len(spans) == 1:
        return [(kind, subkind, "", spans[0].name)]
    return [(kind, f"{subkind}_order", word, spans[i].name) for i, word in _orders(len(spans))]


def _templates(clip: Clip) -> list[tuple[Kind, str, str, str]]:
    """Returns (kind, subkind, filler, answer) of every question that the clip answers."""
    found = _in_order("video", "what", list(clip.pictures))
    words: dict[SoundKind, str] = {"digit": "number", "instrument": "instrument"}
    for kind, word in words.items():
        found += _in_order("audio", word, [s for s in clip.sounds if s.kind == kind])
    for sound in clip.sounds:
        for picture in clip.pictures:
            if picture.start <= sound.start and sound.end <= picture.end and len(clip.pictures) > 1:
                word = words[sound.kind]
                found.append(("audio_visual", f"picture_while_{word}", sound.name, picture.name))
                found.append(("audio_visual", f"{word}_while_picture", picture.name, sound.name))
    return found


def questions(clip: Clip, rng: np.random.Generator | None = None) -> list[Question]:
    """Lists every question that has one answer in the clip.

    Args:
        clip: a composed clip.
        rng: draws a phrasing for each; without it the canonical ones are used.
    """
    result = []
    for kind, subkind, filler, answer in _templates(clip):
        phrasings = PHRASINGS[subkind]
        phrasing = phrasings[0 if rng is None else int(rng.integers(len(phrasings)))]
        result.append(Question(kind, subkind, phrasing.format(order=filler, cue=filler), answer))
    return result


def draw_questions(rng: np.random.Generator, clip: Clip, count: int) -> list[Question]:
    """Draws `count` questions for training, in any phrasing.

    They are spread as evenly over the kinds as the clip allows, and repeated when it has too few.

    Raises:
        ValueError: the clip answers no question.
    """
    by_kind: dict[Kind, list[Question]] = {}
    for question in questions(clip, rng):
        by_kind.setdefault(question.kind, []).append(question)
    if not by_kind:
        raise ValueError("The clip has neither pictures nor sounds, so it answers no question.")
    queues = {kind: [group[i] for i in rng.permutation(len(group))] for kind, group in by_kind.items()}
    order = [list(queues)[i] for i in rng.permutation(len(queues))]
    drawn = []
    for turn in range(count):
        left = [k for k in order if queues[k]]
        if not left:
            queues = {kind: [group[i] for i in rng.permutation(len(group))] for kind, group in by_kind.items()}
            left = order
        drawn.append(queues[left[turn % len(left)]].pop())
    return drawn

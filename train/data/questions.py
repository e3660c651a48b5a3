"""Questions about composed clips: of one word, by what must be looked at; transcripts; and conversations of both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from train.data.clips import Clip, PictureSpan, SoundKind, SoundSpan

Kind = Literal["video", "audio", "audio_visual", "category", "synchrony", "transcript"]
WORD_KINDS: tuple[Kind, ...] = ("video", "audio", "audio_visual")
"""Answered with the name of a thing that is shown or heard."""
KINDS: tuple[Kind, ...] = (*WORD_KINDS, "category", "synchrony", "transcript")
"""Also: the one thing of its category; whether two things are at the same time; all things in their order."""

# What fills {order}.
ORDINALS = ("first", "second", "third", "fourth")
CATEGORIES = {
    "vehicle": ("airplane", "car", "ship", "truck"),
    "animal": ("bird", "cat", "deer", "dog", "frog", "horse"),
}

# The first phrasing of each list is the one used for validation and test; training draws from all. {cue} is filled with
# the name of what marks the moment: the picture on screen, or what is heard; {shown} with the name of a picture.
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
    "vehicle": ("Which vehicle is shown?", "Which vehicle is on screen?", "Which vehicle do you see?"),
    "animal": ("Which animal is shown?", "Which animal is on screen?", "Which animal do you see?"),
    "number_meets_picture": (
        "Is the number {cue} spoken while the {shown} is shown?",
        "Is {cue} spoken while the {shown} is on screen?",
        "Does someone say {cue} when the {shown} is shown?",
    ),
    "instrument_meets_picture": (
        "Does the {cue} play while the {shown} is shown?",
        "Does the {cue} play while the {shown} is on screen?",
        "Is the {cue} heard when the {shown} is shown?",
    ),
    "heard": (
        "Say everything that is heard, in order.",
        "Say all that you hear, in order.",
        "List every sound in its order.",
    ),
    "shown": (
        "Say what is shown, in order.",
        "Say all that you see, in order.",
        "List every picture in its order.",
    ),
}
Words = Literal["picture", "digit", "instrument", "yes_no", "sequence"]
# Answer words by subkind, for chance levels and confusion tables.
ANSWERS: dict[str, Words] = {
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
    "vehicle": "picture",
    "animal": "picture",
    "number_meets_picture": "yes_no",
    "instrument_meets_picture": "yes_no",
    "heard": "sequence",
    "shown": "sequence",
}


@dataclass(frozen=True)
class Question:
    """A question about a clip.

    Attributes:
        kind: what must be looked at, and what for.
        subkind: a key of PHRASINGS and of ANSWERS.
        text: the question.
        answer: one lower-case word; of a transcript several, with spaces between.
        named: things that the text names.
    """

    kind: Kind
    subkind: str
    text: str
    answer: str
    named: tuple[str, ...] = ()


Template = tuple[Kind, str, dict[str, str], str]
"""Kind, subkind, what fills the phrasing, answer."""


def _orders(count: int) -> list[tuple[int, str]]:
    """Returns (position, word) for what can be asked about `count` things in a row."""
    orders = [(i, ORDINALS[i]) for i in range(min(count, len(ORDINALS)))]
    return [*orders, (count - 1, "last")] if count > 1 else []


def _in_order(kind: Kind, subkind: str, spans: list[PictureSpan] | list[SoundSpan]) -> list[Template]:
    """Questions about things in their order; one thing alone is asked for without an order."""
    if len(spans) == 1:
        return [(kind, subkind, {}, spans[0].name)]
    return [(kind, f"{subkind}_order", {"order": word}, spans[i].name) for i, word in _orders(len(spans))]


def _templates(clip: Clip) -> list[Template]:
    """Every question that the clip answers; what occurs more than once marks no moment."""
    found: list[Template] = _in_order("video", "what", list(clip.pictures))
    words: dict[SoundKind, str] = {"digit": "number", "instrument": "instrument"}
    for kind, word in words.items():
        found += _in_order("audio", word, [s for s in clip.sounds if s.kind == kind])
    shown = Counter(picture.name for picture in clip.pictures)
    heard = Counter((sound.kind, sound.name) for sound in clip.sounds)
    for number, sound in enumerate(clip.sounds):
        word, named = words[sound.kind], heard[sound.kind, sound.name] == 1
        for picture in clip.pictures:
            if picture.start <= sound.start and sound.end <= picture.end and len(clip.pictures) > 1:
                if named:
                    found.append(("audio_visual", f"picture_while_{word}", {"cue": sound.name}, picture.name))
                if shown[picture.name] == 1:
                    found.append(("audio_visual", f"{word}_while_picture", {"cue": picture.name}, sound.name))
                others = [name for name in shown if name != picture.name]
                if named and others:  # as many times yes as no
                    cue, other = sound.name, others[number % len(others)]
                    meets = f"{word}_meets_picture"
                    found.append(("synchrony", meets, {"cue": cue, "shown": picture.name}, "yes"))
                    found.append(("synchrony", meets, {"cue": cue, "shown": other}, "no"))
    if len(clip.pictures) > 1:
        for category, members in CATEGORIES.items():
            ours = [picture.name for picture in clip.pictures if picture.name in members]
            if len(ours) == 1:
                found.append(("category", category, {}, ours[0]))
    for subkind, spans in (("heard", clip.sounds), ("shown", clip.pictures)):
        if spans:
            found.append(("transcript", subkind, {}, " ".join(span.name for span in spans)))
    return found


def questions(clip: Clip, rng: np.random.Generator | None = None, kinds: Sequence[Kind] = WORD_KINDS) -> list[Question]:
    """Lists every question of these kinds that has one answer in the clip.

    Args:
        clip: a composed clip.
        rng: draws a phrasing for each; without it the canonical ones are used.
        kinds: the kinds.
    """
    result = []
    for kind, subkind, fillers, answer in _templates(clip):
        if kind in kinds:
            phrasings = PHRASINGS[subkind]
            phrasing = phrasings[0 if rng is None else int(rng.integers(len(phrasings)))]
            named = tuple(name for key, name in fillers.items() if key != "order")
            result.append(Question(kind, subkind, phrasing.format(**fillers), answer, named))
    return result


def draw_questions(
    rng: np.random.Generator,
    clip: Clip,
    count: int,
    kinds: Sequence[Kind] = WORD_KINDS,
    *,
    canonical: bool = False,
) -> list[Question]:
    """Draws `count` questions of these kinds, in any phrasing or in the canonical one.

    They are spread as evenly over the kinds as the clip allows, and repeated when it has too few.

    Raises:
        ValueError: the clip answers no question.
    """
    by_kind: dict[Kind, list[Question]] = {}
    for question in questions(clip, None if canonical else rng, kinds):
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


def given_away(question: Question, before: Sequence[Question]) -> bool:
    """Whether the questions and answers before it may tell the answer.

    That is if they name the thing that is the answer; or one that a question with the answer yes or no is about.
    """
    said = {word for other in before for word in (*other.named, *other.answer.split())}
    tells = question.named if ANSWERS[question.subkind] == "yes_no" else (question.answer,)
    return any(name in said for name in tells)


def converse(asked: Sequence[Question], turns: int) -> tuple[tuple[Question, ...], list[Question]]:
    """The first conversation of up to so many of the questions, none repeated or given away; and what is left."""
    turn, left = list[Question](), list[Question]()
    for question in asked:
        fits = len(turn) < turns and question not in turn and not given_away(question, turn)
        (turn if fits else left).append(question)
    return tuple(turn), left


def draw_conversations(
    rng: np.random.Generator,
    clip: Clip,
    count: int,
    kinds: Sequence[Kind] = WORD_KINDS,
    turns: int = 1,
    *,
    canonical: bool = False,
) -> list[tuple[Question, ...]]:
    """Draws `count` questions as `draw_questions` does, in conversations of one to `turns` of them.

    Raises:
        ValueError: the clip answers no question.
    """
    left, found = draw_questions(rng, clip, count, kinds, canonical=canonical), []
    while left:
        conversation, left = converse(left, int(rng.integers(1, turns + 1)))
        found.append(conversation)
    return found

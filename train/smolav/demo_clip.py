"""Builds the bundled clip, models/smolav/demo/demo.mp4, and the questions about it.

    python -m train.smolav.demo_clip

The photos lie beside the clip; the recordings are of the test split, so no training has seen any of them.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from models.media.clip import read_clip
from models.media.clip_writer import write_clip
from models.media.waveform import SAMPLE_RATE
from train.data.clips import Clip, PictureSpan, SoundSpan
from train.data.questions import questions
from train.data.sources import Sources, digits, instruments

FOLDER = Path(__file__).resolve().parents[2] / "models" / "smolav" / "demo"
PHOTOS = ("bird", "cat", "horse", "dog")
CLIP = Clip(
    seconds=26,
    pictures=(
        PictureSpan(0, "bird", 0, 7),
        PictureSpan(1, "cat", 7, 14),
        PictureSpan(2, "horse", 14, 20),
        PictureSpan(3, "dog", 20, 26),
    ),
    # Recordings are numbered as in RECORDINGS.
    sounds=(
        SoundSpan("instrument", 0, "trumpet", 2.0, 5.0, 0.6),
        SoundSpan("digit", 0, "four", 9.5, 10.0, 0.7),
        SoundSpan("digit", 1, "seven", 16.5, 17.1, 0.7),
        SoundSpan("instrument", 1, "piano", 21.5, 24.5, 0.6),
    ),
)
RECORDINGS = {"digit": ("4_jackson_2", "7_jackson_3"), "instrument": ("trumpet A3", "piano Cs4")}
QUESTIONS = (
    "What is shown second?",
    "Which number is spoken last?",
    "What is on screen while the trumpet plays?",
)
FPS = 5


def build(folder: Path) -> None:
    """Writes demo.mp4 and questions.json into `folder`, which holds photos/NAME.jpg."""
    photos = [read_clip(folder / "photos" / f"{name}.jpg").frames for name in PHOTOS]
    shown = np.concatenate([p for p in photos if p is not None])
    all_digits, all_notes = digits.load("test"), instruments.load("test")
    sources = Sources(
        np.arange(len(PHOTOS)),
        PHOTOS,
        all_digits.pick([all_digits.keys.index(key) for key in RECORDINGS["digit"]]),
        all_notes.pick([all_notes.keys.index(key) for key in RECORDINGS["instrument"]]),
    )
    whole = [  # a spoken word lasts as long as its recording
        dataclasses.replace(s, end=s.start + sources.digits.lengths[s.recording] / SAMPLE_RATE)
        if s.kind == "digit"
        else s
        for s in CLIP.sounds
    ]
    clip = dataclasses.replace(CLIP, sounds=tuple(whole))
    frames = shown[np.repeat(clip.picture_ids, FPS)]
    write_clip(folder / "demo.mp4", frames, FPS, clip.audio(sources))
    answers = {question.text: question for question in questions(clip)}
    listed = [{"kind": answers[q].kind, "question": q, "answer": answers[q].answer} for q in QUESTIONS]
    (folder / "questions.json").write_text(json.dumps({"clip": "demo.mp4", "questions": listed}, indent=2) + "\n")


if __name__ == "__main__":
    build(FOLDER)

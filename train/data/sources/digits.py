"""Spoken digits: the Free Spoken Digit Dataset (CC-BY-SA 4.0), carried in the folder spoken_digits."""

import csv
import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from models.media.waveform import decode_audio, resample
from train.data.sources.items import Sounds, check_split, join_sounds

FOLDER = Path(__file__).parent / "spoken_digits"
RATE = 8_000
SHA256 = "4994e7ad3c79e5dd0e69e8fc82af3a5104850bd07e90c3a657421fd1224d34fd"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# No split holds this voice, so that a trained model has never heard it.
UNSEEN_SPEAKER = "theo"
# Takes 0-4 are the data set's own test set.
TAKES = {"train": range(10, 50), "validation": range(5, 10), "test": range(0, 5)}


@cache
def _recordings() -> tuple[np.ndarray, list[tuple[int, str, int, int]]]:
    """Returns all samples at 8 kHz, and (digit, speaker, take, samples) of each recording in the same order."""
    path = FOLDER / "recordings.flac"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} is damaged (sha256 {found}); restore it with `git checkout -- {path}`.")
    with (FOLDER / "recordings.csv").open(newline="") as file:
        rows = [(int(r["digit"]), r["speaker"], int(r["take"]), int(r["samples"])) for r in csv.DictReader(file)]
    return decode_audio(path, rate=RATE), rows


@cache
def load(split: str) -> Sounds:
    """Loads the recordings of five speakers, split by take: 2,000 / 250 / 250."""
    check_split(split)
    samples, rows = _recordings()
    ends = np.cumsum([row[3] for row in rows])
    recordings, labels, keys = [], [], []
    for (digit, speaker, take, length), end in zip(rows, ends, strict=True):
        if take in TAKES[split] and speaker != UNSEEN_SPEAKER:
            recordings.append(resample(samples[end - length : end], RATE))
            labels.append(digit)
            keys.append(f"{digit}_{speaker}_{take}")
    return join_sounds(recordings, labels, NAMES, keys)

"""Made-up sources: a pure tone for each class of sounds, and numbers for pictures."""

import functools

import numpy as np

from models.media.waveform import SAMPLE_RATE
from train.data.sources import digits, instruments
from train.data.sources.items import Sounds, Sources, join_sounds

PICTURES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def tones(names: tuple[str, ...], copies: int, seconds: tuple[float, float]) -> Sounds:
    """One pure tone per class and copy; the class is the frequency, 100 Hz apart."""
    recordings, labels, keys = [], [], []
    for label in range(len(names)):
        for copy in range(copies):
            count = int(SAMPLE_RATE * np.linspace(*seconds, copies)[copy])
            wave = 9000 * np.sin(2 * np.pi * (200 + 100 * label) * np.arange(count) / SAMPLE_RATE)
            recordings.append(wave.astype(np.int16))
            labels.append(label)
            keys.append(f"{names[label]} {copy}")
    return join_sounds(recordings, labels, names, keys)


@functools.cache
def sources() -> Sources:
    """Five pictures and three recordings of each class."""
    return Sources(
        np.arange(50) % 10,
        PICTURES,
        tones(digits.NAMES, 3, (0.3, 1.5)),
        tones(instruments.NAMES, 3, (0.5, 5.0)),
    )

"""Kaldi's filter banks against torchaudio's."""

import numpy as np
import pytest

from models.audio.kaldi import fbank, mel_bands
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import GOLDEN, SOUNDS

EXPECTED = np.load(GOLDEN / "videollama2_preprocessing.npz")


@pytest.mark.parametrize("number", range(len(SOUNDS)))
def test_equals_torchaudio(number):
    seconds, seed = SOUNDS[number]
    ours = fbank(seeded.sound(seed, seconds)[:16_000] * 2**15)[::7]
    difference = np.abs(ours - EXPECTED[f"banks_{number}"])
    # Bands that are almost silent beside a loud tone hold float32's rounding errors, which the logarithm shows.
    assert difference.max() < 5e-3 and np.quantile(difference, 0.95) < 1e-4


def test_frames_are_whole():
    assert fbank(np.zeros(399)).shape == (0, 128)
    assert fbank(np.zeros(400)).shape == (1, 128)
    assert fbank(np.zeros(480_000)).shape == (2998, 128)
    np.testing.assert_array_equal(fbank(np.zeros(400)), np.log(np.finfo(np.float32).eps))


def test_one_band_is_empty():
    assert [band for band in range(128) if not mel_bands(128)[:, band].any()] == [3]

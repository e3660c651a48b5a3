"""Log-mel features against transformers' WhisperFeatureExtractor."""

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from models.audio.log_mel import log_mel, mel_filters
from models.errors import UserError
from models.media.waveform import SAMPLE_RATE
from tests.tolerances import LOGITS


def sound(name: str, samples: int) -> np.ndarray:
    time = np.arange(samples) / SAMPLE_RATE
    waves = {
        "noise": np.random.default_rng(0).standard_normal(samples) * 0.1,
        "tones": 0.5 * np.sin(2 * np.pi * 440 * time) + 0.01 * np.sin(2 * np.pi * 6000 * time),
        "silence": np.zeros(samples),
    }
    return waves[name].astype(np.float32)


def reference(samples: np.ndarray, bins: int, **options: object) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=30)
    return extractor([samples], sampling_rate=SAMPLE_RATE, return_tensors="np", **options)["input_features"][0]


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("name", ["noise", "tones", "silence"])
def test_padded_to_30_seconds(name: str, bins: int) -> None:
    samples = sound(name, 41_234)
    ours = log_mel(samples, bins=bins, pad_to=30 * SAMPLE_RATE)
    assert ours.shape == (bins, 3000) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, reference(samples, bins), **LOGITS)


@pytest.mark.parametrize("samples", [201, 16_000, 41_234])
def test_not_padded(samples: int) -> None:
    wave = sound("noise", samples)
    ours = log_mel(wave, bins=128)
    assert ours.shape == (128, samples // 160)
    theirs = reference(wave, 128, padding=True, truncation=False)
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], **LOGITS)


def test_filters_have_unit_area() -> None:
    area = mel_filters(80).sum(axis=1) * SAMPLE_RATE / 400
    np.testing.assert_allclose(area[50:], 1, atol=0.05)  # the low ones are narrower than the spectrum's grid


@pytest.mark.parametrize(
    ("samples", "pad_to", "message"),
    [
        (np.zeros((2, 800)), None, "one channel"),
        (np.zeros(200), None, "only 200 samples"),
        (np.zeros(16_001), 16_000, "cut it into windows of 1 s"),
    ],
)
def test_bad_sound(samples: np.ndarray, pad_to: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        log_mel(samples, pad_to=pad_to)

"""Kaldi's log-mel filter banks in NumPy, as BEATs takes them.

What torchaudio.compliance.kaldi.fbank computes with dither 0: only whole frames of 25 ms every 10 ms, mean removed,
pre-emphasis 0.97, Povey window, power spectrum over 512 points, triangles evenly spaced on the mel scale
1127 ln(1 + f / 700) from 20 Hz to 8 kHz, natural logarithm floored at the float32 epsilon.
"""

import functools

import numpy as np
from jaxtyping import Float

from models.media.waveform import SAMPLE_RATE

FRAME, SHIFT = 400, 160
POINTS = 512
PREEMPHASIS = 0.97
LOWEST = 20.0
EPSILON = np.finfo(np.float32).eps


def fbank(samples: Float[np.ndarray, " samples"], bins: int = 128) -> Float[np.ndarray, "F bins"]:
    """Log-mel energies of mono sound at 16 kHz, 100 frames a second.

    Args:
        samples: waveform in Kaldi's scale, that of 16-bit integers.
        bins: number of mel bands.

    Returns:
        [F, bins] float32, where F = 1 + (samples - 400) // 160; no rows for less than 25 ms.
    """
    frames = max(0, 1 + (len(samples) - FRAME) // SHIFT)
    cut = samples.astype(np.float32)[np.arange(FRAME)[None] + SHIFT * np.arange(frames)[:, None]]
    cut = cut - cut.mean(axis=1, keepdims=True)
    cut = cut - np.float32(PREEMPHASIS) * np.concatenate([cut[:, :1], cut[:, :-1]], axis=1)
    window = np.hanning(FRAME).astype(np.float32) ** np.float32(0.85)  # Povey's
    power = np.abs(np.fft.rfft(cut * window, POINTS)).astype(np.float32) ** 2
    return np.log(np.maximum(power @ mel_bands(bins), EPSILON))


@functools.cache
def mel_bands(bins: int) -> Float[np.ndarray, "257 bins"]:
    """Weights of the mel bands over the bins of the power spectrum; at 128 bands the fourth one is empty."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(LOWEST), mel(SAMPLE_RATE / 2), bins + 2)
    points = mel(SAMPLE_RATE / POINTS * np.arange(POINTS // 2))[:, None]
    rising = (points - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None]
    falling = (edges[None, 2:] - points) / (edges[2:] - edges[1:-1])[None]
    bands = np.maximum(0.0, np.minimum(rising, falling))
    return np.pad(bands, ((0, 1), (0, 0))).astype(np.float32)  # Kaldi leaves the last bin of the spectrum out

"""Whisper's log-mel spectrogram in NumPy (arXiv 2212.04356, section 2.2), for 80 or 128 mel bins."""

import functools

import numpy as np
from jaxtyping import Float

from models.errors import UserError
from models.media.waveform import SAMPLE_RATE

WINDOW = 400  # 25 ms
HOP = 160  # 10 ms


@functools.cache
def mel_filters(bins: int) -> Float[np.ndarray, "bins 201"]:
    """Triangular filters from 0 to 8000 Hz on Slaney's mel scale, each of unit area (Slaney 1998, Auditory Toolbox).

    The scale is linear up to 1000 Hz (15 mel) and logarithmic above, 27 mel for a factor of 6.4.
    """
    top = 15 + np.log(8000 / 1000) * 27 / np.log(6.4)
    mels = np.linspace(0, top, bins + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    slopes = (frequencies - edges[:, None]) / np.diff(edges, append=np.inf)[:, None]
    rising, falling = slopes[:-2], 1 - slopes[1:-1]
    area = 2 / (edges[2:] - edges[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * area[:, None]


def log_mel(
    samples: Float[np.ndarray, "samples"], *, bins: int = 80, pad_to: int | None = None
) -> Float[np.ndarray, "bins frames"]:
    """Log-mel features of one clip, as Hugging Face's WhisperFeatureExtractor gives them.

    Padding: with `pad_to` the sound is followed by silence up to that many samples, and the result has pad_to // 160
    frames (Whisper: 30 s; Qwen2.5-Omni: 300 s, of which the first ceil(samples / 160) frames are then kept). Without
    it the sound is mirrored at its end and has samples // 160 frames (Qwen3-Omni). The floor of the dynamic range, 8
    powers of ten below the loudest value, is taken after padding.

    Args:
        samples: mono sound at 16 kHz, in [-1, 1].
        bins: mel bins, 80 or 128.
        pad_to: length in samples after padding.

    Raises:
        UserError: if the sound is longer than `pad_to`, or not one-dimensional, or too short to be mirrored.
    """
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise UserError(f"log_mel takes one channel of samples, not an array of shape {samples.shape}; mix it down.")
    if pad_to is not None:
        if len(samples) > pad_to:
            raise UserError(
                f"The sound has {len(samples)} samples and the window {pad_to}; cut it into windows of "
                f"{pad_to / SAMPLE_RATE:g} s."
            )
        samples = np.pad(samples, (0, pad_to - len(samples)))
    if len(samples) <= WINDOW // 2:
        raise UserError(f"The sound has only {len(samples)} samples; at least {WINDOW // 2 + 1} (13 ms) are needed.")
    mirrored = np.pad(samples, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::HOP][: len(samples) // HOP]
    hann = np.hanning(WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    levels = np.log10(np.maximum(mel_filters(bins) @ power.T, 1e-10))
    return ((np.maximum(levels, levels.max() - 8) + 4) / 4).astype(np.float32)

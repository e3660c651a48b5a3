"""From a decoded clip to what the towers take, in NumPy, as upstream's own programs do it."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from models.audio.kaldi import fbank
from models.media.waveform import SAMPLE_RATE

PIECES, PIECE_SECONDS = 8, 2  # how much of a clip's sound is heard: so many pieces, spread evenly
SECONDS = 30  # that every sound is filled up to, with silence


def frame_numbers(frames: int, wanted: int) -> Int[np.ndarray, " wanted"]:
    """Which of a clip's frames are seen: those in the middle of `wanted` equal parts; some twice in a short clip."""
    part = (frames - 1) / wanted
    starts = part * np.arange(wanted)
    return np.round((starts + part * np.arange(1, wanted + 1)) / 2 + 1e-6).astype(int)


def pixels(frames: UInt8[np.ndarray, "F Y X 3"]) -> Float[np.ndarray, "F Y X 3"]:
    """Bytes to numbers in [-1, 1]."""
    return (frames.astype(np.float32) / 255 - 0.5) / 0.5


def pieces(samples: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " heard"]:
    """The pieces of a clip's sound that are heard, joined.

    The first one starts with the clip, each next one an eighth of what is left besides one piece later; so the end of a
    long clip is not heard, and of one shorter than a piece all is heard eight times.
    """
    # Exact fractions, because upstream cuts at whole samples of exact fractions of a rounded duration.
    latest = Fraction(max(len(samples) / SAMPLE_RATE - PIECE_SECONDS, 0))
    starts = [latest / PIECES * number for number in range(PIECES)]
    spans = [(int(start * SAMPLE_RATE), int((start + PIECE_SECONDS) * SAMPLE_RATE)) for start in starts]
    return np.concatenate([samples[start:end] for start, end in spans])


def clip_banks(samples: Float[np.ndarray, " samples"], *, with_frames: bool) -> Float[np.ndarray, "2998 128"]:
    """Filter banks of a clip's sound, filled up with silence.

    They are rounded to bfloat16, as upstream does.

    Args:
        samples: mono at 16 kHz in [-1, 1].
        with_frames: whether the clip has pictures: then only `pieces` of the sound are heard. Of sound alone the first
            30 seconds are heard (upstream takes a random stretch of longer ones).
    """
    length = SECONDS * SAMPLE_RATE
    heard = (pieces(samples) if with_frames else samples)[:length]
    padded = np.pad(heard.astype(np.float32), (0, length - len(heard)))
    return fbank(padded * 2**15).astype(jnp.bfloat16).astype(np.float32)

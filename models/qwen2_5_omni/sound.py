"""Sound as Qwen2.5-Omni's audio tower takes it."""

import numpy as np
from jaxtyping import Float

from models.audio.log_mel import HOP, log_mel
from models.errors import UserError
from models.media.waveform import SAMPLE_RATE

LONGEST = 300  # seconds


def mel_frames(seconds: float) -> int:
    """Frames of the log-mel spectrogram of so much sound."""
    return -(-round(seconds * SAMPLE_RATE) // HOP)


def check_length(seconds: float) -> None:
    """Refuses sound that is longer than the model hears; Hugging Face's processor cuts it off, unsaid.

    Raises:
        UserError: it is.
    """
    if seconds > LONGEST:
        raise UserError(f"The sound lasts {seconds:.1f} s, and Qwen2.5-Omni hears {LONGEST} s at most; cut the clip.")


def mel_features(samples: Float[np.ndarray, " samples"], bins: int = 128) -> Float[np.ndarray, "bins frames"]:
    """Log-mel features, ceil(samples / 160) frames.

    They are those of a Whisper feature extractor that pads to 300 s and drops what lies wholly in the silence.

    Args:
        samples: mono sound at 16 kHz.
        bins: mel bins.

    Raises:
        UserError: if there is no sound, or more than 300 s.
    """
    if len(samples) == 0:
        raise UserError("The sound is empty; leave it out.")
    check_length(len(samples) / SAMPLE_RATE)
    frames = mel_frames(len(samples) / SAMPLE_RATE)
    # A window reaches 200 samples to either side, so the sound is heard up to two frames beyond its end (they count
    # for the loudest value), and mirroring the silence of four adds nothing to them. What follows is silence.
    padded = min((frames + 4) * HOP, LONGEST * SAMPLE_RATE)
    return log_mel(samples, bins=bins, pad_to=padded)[:, :frames]

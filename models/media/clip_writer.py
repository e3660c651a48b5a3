"""Writing of small clips with PyAV: H.264 and AAC, or FFV1 and FLAC, which lose nothing."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, UInt8

from models.media.waveform import SAMPLE_RATE, to_int16


def write_clip(
    path: str | Path,
    frames: UInt8[np.ndarray, "n h w 3"] | None,
    fps: int = 1,
    audio: Float[np.ndarray, " samples"] | None = None,
    *,
    crf: int = 20,
    lossless: bool = False,
) -> None:
    """Encodes pictures as H.264 and sound as AAC into an mp4, mov or mkv file (by its suffix).

    Args:
        path: the file to write.
        frames: RGB pictures, height and width even; None for sound alone.
        fps: pictures per second.
        audio: 16 kHz mono in [-1, 1]; None for no sound.
        crf: quality of H.264, lower is better (18 is nearly indistinguishable from the source).
        lossless: instead FFV1 and FLAC, into an mkv file; the sound is rounded to 16 bits.

    Raises:
        ValueError: neither pictures nor sound, or an odd height or width (4:2:0 pixels need even ones).
    """
    if frames is None and audio is None:
        raise ValueError("A clip needs pictures, sound or both.")
    if frames is not None and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(
            f"Height and width must be even, not {frames.shape[1]} x {frames.shape[2]}; resize the frames."
        )
    codecs, pixels, samples = (("ffv1", "flac"), "bgr0", "s16") if lossless else (("libx264", "aac"), "yuv420p", "fltp")
    options = {"movflags": "faststart"} if Path(path).suffix in (".mp4", ".mov") else {}
    if lossless:
        options["fflags"] = "bitexact"  # else Matroska draws random numbers
    with av.open(str(path), "w", options=options) as out:
        video: Any = None  # streams of PyAV, whose types the name of a codec does not tell
        sound: Any = None
        if frames is not None:
            quality = {} if lossless else {"crf": str(crf), "preset": "medium"}
            video = out.add_stream(codecs[0], rate=fps, options=quality)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = pixels
        if audio is not None:
            sound = out.add_stream(codecs[1], rate=SAMPLE_RATE, layout="mono")
            if not lossless:
                sound.bit_rate = 64_000
        if video is not None and frames is not None:
            for picture in frames:
                out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(video.encode(None))
        if sound is not None and audio is not None:
            frame = av.AudioFrame.from_ndarray(to_int16(audio)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
            size = 1152 if lossless else 1024  # samples of a frame of FLAC at this rate, of AAC
            resampler = av.AudioResampler(format=samples, layout="mono", rate=SAMPLE_RATE, frame_size=size)
            for block in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(sound.encode(block))
            out.mux(sound.encode(None))

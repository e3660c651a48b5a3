"""Small files in any container, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.models.media.numbered import frame

CODECS = {
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "wmv": ("wmv2", "wmav2"),
    "mxf": ("mpeg2video", "pcm_s16le"),
    "mpg": ("mpeg2video", "mp2"),
}
"""Of pictures and sound, where it is not H.264 and AAC."""
SHARP = {
    "libx264": {"crf": "8", "preset": "veryfast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "mpeg2video": {"qmin": "2", "qmax": "2"},
}


def write_video(
    path: Path,
    count: int,
    rate: Fraction | int = 30,
    *,
    first: int = 0,
    times: Sequence[Fraction | float] | None = None,
    sound: float | None = None,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> None:
    """Writes numbered frames.

    Args:
        path: its suffix chooses the container and the codecs.
        count: of frames.
        rate: frames per second.
        first: number of the first one.
        times: seconds at which the frames are shown, instead of `rate`.
        sound: seconds of it; None for none.
        codec: of the pictures, if not the usual one.
        options: of that codec, beside those for sharp pictures.
        container: options of the container.
    """
    suffix = path.suffix[1:]
    usual, heard = CODECS.get(suffix, ("libx264", "aac"))
    codec = codec or usual
    with av.open(str(path), "w", options=container or {}) as out:
        video = out.add_stream(codec, rate=rate, options={**SHARP.get(codec, {}), **(options or {})})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.bit_rate = 2_000_000
        audio = None if sound is None else out.add_stream(heard, rate=48_000, layout="stereo")
        if audio is not None:
            audio.bit_rate = 128_000
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(frame(first + number), format="rgb24")
            if times is None:
                picture.pts, picture.time_base = number, 1 / Fraction(rate)
            else:
                picture.pts, picture.time_base = round(times[number] * 1000), Fraction(1, 1000)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        if audio is not None and sound is not None:
            mux_sound(out, audio, np.tile(beeps(sound, 48_000), (2, 1)), 48_000)


def beeps(seconds: float, rate: int) -> np.ndarray:
    """A beep of 1 kHz for a tenth of a second at every full second, in [-0.5, 0.5]."""
    times = np.arange(round(seconds * rate)) / rate
    return np.where(times % 1 < 0.1, 0.5 * np.sin(2 * np.pi * 1000 * times), 0).astype(np.float32)


def mux_sound(out: av.container.OutputContainer, stream: av.AudioStream, samples: np.ndarray, rate: int) -> None:
    """Encodes samples, [n] or [channels, n], into a stream."""
    context = stream.codec_context
    samples = np.atleast_2d(samples).astype(np.float32)
    block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=context.layout)
    block.sample_rate = rate
    resampler = av.AudioResampler(context.format, context.layout, rate, frame_size=context.frame_size or 1024)
    for converted in [*resampler.resample(block), *resampler.resample(None)]:
        out.mux(stream.encode(converted))
    out.mux(stream.encode(None))


def write_sound(path: Path, samples: np.ndarray, codec: str, rate: int = 16_000, layout: str = "mono") -> None:
    """Writes samples, [n] or [channels, n]."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        mux_sound(out, stream, samples, rate)

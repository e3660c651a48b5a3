"""Decoding of sound with PyAV: any container and codec to one float32 mono waveform."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import Float, Int

SAMPLE_RATE = 16_000


def to_float(samples: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Maps int16 samples to float32 in [-1, 1)."""
    return samples.astype(np.float32) / 32768


def to_int16(samples: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Maps float samples in [-1, 1] to int16, clipping what is louder."""
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


class MonoResampler:
    """Turns decoded frames of any kind, which may change on the way, into blocks of mono samples at one rate.

    Channels are mixed as FFmpeg mixes their layout, so that they cannot grow louder; where it knows none for so many,
    their mean is taken.
    """

    def __init__(self, rate: int = SAMPLE_RATE, sample_format: Literal["flt", "s16"] = "flt") -> None:
        """Prepares a resampler to `rate` hertz, of float32 (which may lie beyond [-1, 1]) or int16 samples."""
        self._rate = rate
        self._format = sample_format
        self._input: tuple[str, str, int] | None = None
        self._resampler = self._new()
        self._mean = False

    def _new(self) -> av.AudioResampler:
        # Without the option, two equal channels of float samples would be mixed to 1.4 times their loudness.
        options = {"rematrix_maxval": "1"} if self._format == "flt" else None
        return av.AudioResampler(format=self._format, layout="mono", rate=self._rate, options=options)

    def blocks(self, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        """Yields the samples that `frame` completes; None flushes what is still inside."""
        if frame is None:
            yield from self._resampled(None)
            return
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._input:
            yield from self._resampled(None)
            self._input, self._resampler, self._mean = kind, self._new(), False
            try:
                blocks = list(self._resampled(frame))
            except FFmpegError:  # it does not know how to mix such channels
                self._resampler, self._mean = self._new(), True
            else:
                yield from blocks
                return
        yield from self._resampled(_mean(frame) if self._mean else frame)

    def _resampled(self, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
        for block in self._resampler.resample(frame):
            if block is not None:  # what a resampler with nothing to do returns when it is flushed
                yield block.to_ndarray()[0]


def _mean(frame: av.AudioFrame) -> av.AudioFrame:
    """The mean of a frame's channels."""
    # Packed, because PyAV reads beyond the end of a frame of more than eight channels that stand apart.
    packer = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
    channels = frame.layout.nb_channels
    blocks = [
        block.to_ndarray().reshape(-1, channels) for block in (*packer.resample(frame), *packer.resample(None)) if block
    ]
    samples = np.concatenate(blocks).mean(axis=1, keepdims=True).T
    mono = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="flt", layout="mono")
    mono.sample_rate = frame.sample_rate
    return mono


def decode_audio(file: str | Path | IO[bytes], rate: int = SAMPLE_RATE) -> Int[np.ndarray, " samples"]:
    """Decodes the first audio stream of a trusted file (our own data sets) to int16 mono.

    Raises:
        av.error.FFmpegError: the file cannot be decoded; `models.media.clip.read_clip` is the function for users.
    """
    resampler = MonoResampler(rate, "s16")
    blocks: list[np.ndarray] = []
    with av.open(str(file) if isinstance(file, Path) else file, "r") as container:
        for frame in container.decode(audio=0):
            blocks.extend(resampler.blocks(frame))
    blocks.extend(resampler.blocks(None))
    return np.concatenate(blocks)


def resample(samples: Int[np.ndarray, " samples"], rate: int, new_rate: int = SAMPLE_RATE) -> Int[np.ndarray, " new"]:
    """Resamples int16 mono samples from `rate` to `new_rate` hertz."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
    frame.sample_rate = rate
    resampler = MonoResampler(new_rate, "s16")
    return np.concatenate([*resampler.blocks(frame), *resampler.blocks(None)])

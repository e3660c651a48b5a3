"""Decoding of sound with PyAV: any container and codec to one float32 mono waveform."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import av
import numpy as np
from jaxtyping import Float, Int

SAMPLE_RATE = 16_000


def to_float(samples: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Maps int16 samples to float32 in [-1, 1)."""
    return samples.astype(np.float32) / 32768


def to_int16(samples: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Maps float samples in [-1, 1] to int16, clipping what is louder."""
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)


class MonoResampler:
    """Turns decoded frames of any layout into blocks of int16 mono samples at one rate."""

    def __init__(self, rate: int = SAMPLE_RATE) -> None:
        """Prepares a resampler to `rate` hertz."""
        self._rate = rate
        self._input: tuple[str, str, int] | None = None
        self._resampler = self._new()

    def _new(self) -> av.AudioResampler:
        return av.AudioResampler(format="s16", layout="mono", rate=self._rate)

    def blocks(self, frame: av.AudioFrame | None) -> Iterator[Int[np.ndarray, " samples"]]:
        """Yields the samples that `frame` completes; None flushes what is still inside."""
        finished: list[av.AudioFrame] = []
        if frame is not None:
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self._input not in (None, kind):  # the stream changes on the way
                finished = self._resampler.resample(None)
                self._resampler = self._new()
            self._input = kind
        for block in [*finished, *self._resampler.resample(frame)]:
            yield block.to_ndarray()[0]


def decode_audio(file: str | Path | IO[bytes], rate: int = SAMPLE_RATE) -> Int[np.ndarray, " samples"]:
    """Decodes the first audio stream of a trusted file (our own data sets) to int16 mono.

    Raises:
        av.error.FFmpegError: the file cannot be decoded; `models.media.clip.read_clip` is the function for users.
    """
    resampler = MonoResampler(rate)
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
    resampler = MonoResampler(new_rate)
    return np.concatenate([*resampler.blocks(frame), *resampler.blocks(None)])

"""Clips composed from single items: pictures shown one after the other, with sounds while they are shown.

A clip is a timeline; its waveform is made from it on demand. Within a clip no class occurs twice, unless its
configuration lets classes return. Everything here is NumPy and pickles, for grain's workers.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from models.media.waveform import SAMPLE_RATE
from train.data.sources.items import Sounds, Sources

SoundKind = Literal["digit", "instrument"]
FADE = SAMPLE_RATE // 100  # 10 ms: a note that is cut off must not click
MARGIN = 0.05  # seconds between a sound and the edges of its picture's span


@dataclass(frozen=True)
class PictureSpan:
    """A picture on screen from `start` to `end`, in whole seconds; `picture` is its id in the split."""

    picture: int
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class SoundSpan:
    """A sound from `start` to `end`, in seconds, made from recording `recording` of its kind in the split.

    `gain` is the peak of the sound; `speed` is the factor by which the recording is played faster (and higher).
    """

    kind: SoundKind
    recording: int
    name: str
    start: float
    end: float
    gain: float
    speed: float = 1.0


@dataclass(frozen=True)
class Clip:
    """A composed clip.

    Attributes:
        seconds: duration.
        pictures: what is shown, in order of time; empty for a clip of sound alone.
        sounds: what is heard, in order of time; empty for a silent clip.
        noise: standard deviation of the white noise under the sounds, and its seed.
    """

    seconds: int
    pictures: tuple[PictureSpan, ...]
    sounds: tuple[SoundSpan, ...]
    noise: tuple[float, int] = (0.0, 0)

    @property
    def picture_ids(self) -> Int[np.ndarray, " n"]:
        """Picture id on screen at each whole second (1 frame per second); empty without pictures."""
        return np.array([p.picture for p in self.pictures for _ in range(p.start, p.end)], np.int64)

    def audio(self, sources: Sources) -> Float[np.ndarray, " samples"]:
        """Renders the waveform, 16 kHz mono, `seconds` long."""
        level, seed = self.noise
        total = self.seconds * SAMPLE_RATE
        if level > 0:
            wave = np.random.default_rng(seed).standard_normal(total, np.float32) * np.float32(level)
        else:
            wave = np.zeros(total, np.float32)
        for span in self.sounds:
            samples = _render(_recordings(sources, span.kind), span)
            start = round(span.start * SAMPLE_RATE)
            wave[start : start + len(samples)] += samples
        return np.clip(wave, -1, 1)


def _recordings(sources: Sources, kind: SoundKind) -> Sounds:
    return sources.digits if kind == "digit" else sources.instruments


def _render(recordings: Sounds, span: SoundSpan) -> Float[np.ndarray, " samples"]:
    """Plays a recording at the span's speed and gain, cut to its duration with faded edges."""
    length = round((span.end - span.start) * SAMPLE_RATE)
    samples = recordings.waveform(span.recording)
    if span.speed != 1.0:
        times = np.arange(min(length, int((len(samples) - 1) / span.speed) + 1)) * span.speed
        samples = np.interp(times, np.arange(len(samples)), samples).astype(np.float32)
    samples = samples[:length] * np.float32(span.gain)
    ramp = np.linspace(0, 1, min(FADE, len(samples)), dtype=np.float32)
    samples[: len(ramp)] *= ramp
    samples[len(samples) - len(ramp) :] *= ramp[::-1]
    return samples


@dataclass(frozen=True)
class ClipConfig:
    """How clips are composed.

    Attributes:
        seconds: shortest and longest duration.
        items: fewest and most pictures; at most one for every `shortest` seconds.
        shortest: least duration of a picture, in whole seconds.
        repeats: classes may return within a clip, but not twice in a row.
        pictures: names of the classes that are shown; none named are all.
        digits: probability that a sound is a digit and not an instrument.
        silent: probability that a picture has no sound (never all of them).
        note: shortest and longest part of a note that is played, in seconds.
        gain: quietest and loudest peak.
        augment: in training, vary the speed of recordings and add noise.
        semitones: greatest change of pitch by the speed of a note, when augmenting.
        noise: least and greatest level of noise, as powers of ten of full scale, when augmenting.
    """

    seconds: tuple[int, int] = (10, 30)
    items: tuple[int, int] = (2, 4)
    shortest: int = 1
    repeats: bool = False
    pictures: tuple[str, ...] = ()
    digits: float = 0.5
    silent: float = 0.1
    note: tuple[float, float] = (0.8, 4.0)
    gain: tuple[float, float] = (0.2, 0.8)
    augment: bool = False
    semitones: float = 1.5
    noise: tuple[float, float] = (-4.0, -2.0)


@dataclass
class _Deal:
    """Classes that a clip must not use now: none occurs twice; with `repeats`, none twice in a row."""

    repeats: bool
    used: dict[str, set[int]] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator, kind: str, labels: np.ndarray, allowed: np.ndarray | None = None) -> int:
        """Draws a class evenly among those left, then one of its items evenly among the allowed ones."""
        used = self.used.get(kind, set())
        mask = ~np.isin(labels, list(used)) if allowed is None else ~np.isin(labels, list(used)) & allowed
        label = int(rng.choice(np.unique(labels[mask])))
        self.used[kind] = {label} if self.repeats else used | {label}
        return int(rng.choice(np.flatnonzero(mask & (labels == label))))


def _spans(rng: np.random.Generator, seconds: int, parts: int, shortest: int) -> list[tuple[int, int]]:
    """Cuts `seconds` at random into `parts` spans of at least `shortest` whole seconds."""
    free = seconds - parts * shortest
    cuts = np.sort(rng.integers(0, free + 1, parts - 1)) + shortest * np.arange(1, parts)
    edges = [0, *(int(c) for c in cuts), seconds]
    return list(zip(edges[:-1], edges[1:], strict=True))


def draw_sound(
    rng: np.random.Generator,
    sources: Sources,
    config: ClipConfig,
    kind: SoundKind,
    span: tuple[int, int],
    deal: _Deal | None = None,
) -> SoundSpan:
    """Draws a sound of a kind and a place for it within (start, end), of a class that the clip may still use."""
    start, end = span
    deal = deal or _Deal(config.repeats)
    recordings = _recordings(sources, kind)
    room = end - start - 2 * MARGIN
    tones = config.semitones if kind == "instrument" else config.semitones / 2
    speed = float(2 ** (rng.uniform(-tones, tones) / 12)) if config.augment else 1.0
    durations = recordings.lengths / (SAMPLE_RATE * speed)
    # A spoken word is never cut; a note may be.
    index = deal.draw(rng, kind, recordings.labels, durations <= room if kind == "digit" else None)
    duration = float(durations[index])
    if kind == "instrument":
        duration = min(duration, room, float(rng.uniform(*config.note)))
    begin = start + MARGIN + float(rng.uniform(0, room - duration))
    gain = float(np.exp(rng.uniform(*np.log(config.gain))))
    name = recordings.names[int(recordings.labels[index])]
    return SoundSpan(kind, index, name, begin, begin + duration, gain, speed)


def _noise(rng: np.random.Generator, config: ClipConfig) -> tuple[float, int]:
    return (float(10 ** rng.uniform(*config.noise)), int(rng.integers(1 << 31))) if config.augment else (0.0, 0)


def clip_at(seed: int, index: int, sources: Sources, config: ClipConfig = ClipConfig()) -> Clip:
    """Composes clip `index` of the endless list that `seed` names: random access, for grain and for test sets.

    Args:
        seed: names the list.
        index: number of the clip in it.
        sources: items of one split.
        config: how clips are composed.
    """
    rng = np.random.default_rng([seed, index])
    seconds = int(rng.integers(config.seconds[0], config.seconds[1] + 1))
    most = seconds // config.shortest
    count = int(rng.integers(min(config.items[0], most), min(config.items[1], most) + 1))
    deal = _Deal(config.repeats)
    named = np.isin(np.array(sources.picture_names), config.pictures or sources.picture_names)
    allowed = named[sources.picture_labels]
    pictures, sounds = [], []
    heard = rng.random(count) >= config.silent
    heard[rng.integers(count)] = True
    for (start, end), sound in zip(_spans(rng, seconds, count, config.shortest), heard, strict=True):
        picture = deal.draw(rng, "picture", sources.picture_labels, allowed)
        pictures.append(PictureSpan(picture, sources.picture_names[int(sources.picture_labels[picture])], start, end))
        if sound:
            kind: SoundKind = "digit" if rng.random() < config.digits else "instrument"
            sounds.append(draw_sound(rng, sources, config, kind, (start, end), deal))
    return Clip(seconds, tuple(pictures), tuple(sounds), _noise(rng, config))

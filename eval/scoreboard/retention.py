"""What a policy keeps of one clip: a timeline with the pictures, the sound, and every layer's tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

import models
from acckv_jax import CachePolicy, Modality
from eval.scoreboard.curves import WIDTH, svg
from eval.scoreboard.kept import Kept, kept_by
from models.interface import AVModel
from models.media.clip import Media
from models.media.paths import clip_path
from models.media.waveform import SAMPLE_RATE

DEMO = Path(models.__file__).parent / "smolav" / "demo"
CLIP, QUESTION = f"{DEMO / 'demo.mp4'}", json.loads((DEMO / "questions.json").read_text())["questions"][0]["question"]
"""The clip that comes with SmolAV, and the first question about it."""
THUMBNAILS = 12
ALONE, MERGED = np.array([0.13, 0.44, 0.71]), np.array([0.90, 0.45, 0.05])
"""Colours of tokens that are kept as they are, and of those that others were merged into."""


def clip_retention(
    model: AVModel, clip: str, question: str, policies: Mapping[str, CachePolicy]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What policies keep of a clip.

    Returns:
        Pictures as SVG, of the clip under the name "" and of what each policy keeps under its own; and by policy its
        name and how many tokens of each modality it keeps, mean over layers and heads.

    Raises:
        UserError: if the clip cannot be read, or a budget is too small for it.
    """
    media = model.load_media(clip_path(clip))
    prefix, asked = models.encode(model, clip).prompt, model.encode_question(question)
    pictures, found = {"": timeline(media)}, []
    for name, kept in kept_by(model, prefix, asked, policies):
        counts = {
            kind.name.lower(): (
                round(float((kept.tokens[..., kept.modality == kind] > 0).mean((0, 1)).sum()), 1),
                int((kept.modality == kind).sum()),
            )
            for kind in (Modality.TEXT, Modality.VIDEO, Modality.AUDIO)
        }
        pictures[name] = retention_map(kept, _seconds(media))
        found.append({"policy": name, "kept": counts})
    return pictures, found


def timeline(media: Media) -> str:
    """The pictures and the sound of a clip over its seconds, as SVG; it lines up with a `retention_map`."""
    sound = media.audio if media.audio is not None else np.zeros(0, np.float32)
    frames = media.frames if media.frames is not None else np.zeros((0, 1, 1, 3), np.uint8)
    figure, (strip, wave) = _over_time(_seconds(media), 1.1, (1, 0.7))
    for start, end, frame in _thumbnails(frames, media.fps):
        strip.imshow(frame, extent=(start, end, 0, 1), aspect="auto")
    strip.set_ylim(0, 1)
    peaks = _peaks(sound)
    wave.fill_between(np.linspace(0, len(sound) / SAMPLE_RATE, len(peaks)), -peaks, peaks, color="0.4", lw=0)
    for axis, name in ((strip, "pictures"), (wave, "sound")):
        axis.set_yticks([])
        axis.set_ylabel(name, fontsize=7)
        axis.tick_params(labelbottom=False)
    wave.set_xlim(0, _seconds(media))
    return svg(figure)


def retention_map(kept: Kept, seconds: float) -> str:
    """Which tokens of pictures and of sound each layer keeps, over the seconds of the clip, as SVG.

    Tokens of a modality are taken to follow each other evenly in time, as encoders emit them.
    """
    figure, axes = _over_time(seconds, 3.2, (1, 1))
    for axis, kind, name in zip(axes, (Modality.VIDEO, Modality.AUDIO), ("pictures", "sound"), strict=True):
        tokens = kept.tokens[..., kept.modality == kind]
        if tokens.shape[-1]:
            extent = (0, seconds, len(tokens) - 0.5, -0.5)
            axis.imshow(_coloured(tokens), extent=extent, aspect="auto", interpolation="none")
        axis.set_ylabel(f"layer ({name})", fontsize=7)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlim(0, seconds)
    axes[-1].set_xlabel("seconds", fontsize=8)
    return svg(figure)


def _seconds(media: Media) -> float:
    sound = 0 if media.audio is None else len(media.audio) / SAMPLE_RATE
    return max(sound, 0 if media.frames is None else len(media.frames) / media.fps, 1.0)


def _over_time(seconds: float, height: float, ratios: tuple[float, ...]) -> tuple[Figure, Any]:
    """Axes above each other, whose sides are where those of every other such figure are."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    figure.subplots_adjust(left=0.08, right=0.99, top=0.97, bottom=0.45 / height if height > 2 else 0.03, hspace=0.12)
    return figure, axes


def _coloured(tokens: Float[np.ndarray, "L K T"]) -> Float[np.ndarray, "L T 3"]:
    """White where no head keeps a token, and a mixture of both colours by the heads that do."""
    alone, merged = ((tokens == 1).mean(1), (tokens > 1).mean(1))
    return np.clip(1 - alone[..., None] * (1 - ALONE) - merged[..., None] * (1 - MERGED), 0, 1)


def _thumbnails(
    frames: UInt8[np.ndarray, "n h w 3"], fps: float
) -> Sequence[tuple[float, float, UInt8[np.ndarray, "h w 3"]]]:
    """Beginning and end of each picture, and the picture, small."""
    number = min(THUMBNAILS, len(frames))
    if not number:
        return []
    edges = np.linspace(0, len(frames) / fps, number + 1)
    middles = ((edges[:-1] + edges[1:]) / 2 * fps).astype(int)
    step = max(1, max(frames.shape[1:3]) // 64)
    return [(a, b, frames[i, ::step, ::step]) for a, b, i in zip(edges[:-1], edges[1:], middles, strict=True)]


def _peaks(sound: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " n"]:
    """Largest deflection in each of up to 400 parts."""
    if not len(sound):
        return np.zeros(2)
    parts = np.array_split(np.abs(sound), min(400, len(sound)))
    return np.array([part.max() for part in parts])

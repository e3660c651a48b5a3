"""Draws docs/av_compose.png: a test clip of each set of av_compose, with its questions.

python docs/plot_av_compose.py
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.media.waveform import SAMPLE_RATE
from train.data.av_compose import SETS, Example, compose, sources_of
from train.data.sources import Sources, cifar10

HERE = Path(__file__).parent
SECONDS = range(20, 41)  # of each set the first clip that lasts so long
POINTS = 2000  # of the waveform


def draw(pictures: Axes, sound: Axes, example: Example, sources: Sources) -> None:
    """The timeline of a clip: pictures over the sound, with the words."""
    clip, images = example.clip, cifar10.load("test").images
    for span in clip.pictures:
        pictures.imshow(images[span.picture], extent=(span.start, span.end, 0, 1), aspect="auto")
        pictures.text((span.start + span.end) / 2, 1.05, span.name, ha="center", va="bottom", fontsize=7, rotation=40)
    pictures.set(xlim=(0, clip.seconds), ylim=(0, 1), xticks=[], yticks=[])
    wave = clip.audio(sources)
    peaks = np.abs(wave[: len(wave) // POINTS * POINTS]).reshape(POINTS, -1).max(axis=1)
    times = np.linspace(0, len(wave) / SAMPLE_RATE, POINTS)
    sound.fill_between(times, -peaks, peaks, lw=0, color="tab:blue")
    for span in clip.sounds:
        sound.text((span.start + span.end) / 2, -1.05, span.name, ha="center", va="top", fontsize=7, rotation=40)
    sound.set(xlim=(0, clip.seconds), ylim=(-1, 1), yticks=[])
    sound.tick_params(axis="x", top=True, bottom=False, labeltop=False, labelbottom=False)


def asked(example: Example) -> str:
    """The first conversation, or both transcripts."""
    first = example.conversations if len(example.conversations[0]) == 1 else example.conversations[:1]
    return "\n".join(f"{q.text}  {q.answer}" for conversation in first for q in conversation)


def main() -> None:
    """Writes the picture."""
    sources = sources_of("test")
    figure = Figure(figsize=(10, 10))
    rows = figure.add_gridspec(len(SETS), 1, hspace=0.35, top=0.94, bottom=0.01, left=0.02, right=0.98)
    for row, name in enumerate(SETS):
        examples = (compose(name, "test", number, sources) for number in range(100))
        example = next(one for one in examples if one.clip.seconds in SECONDS)
        cells = rows[row].subgridspec(3, 1, hspace=0.05, height_ratios=(1, 0.8, 1))
        above, below = figure.add_subplot(cells[0]), figure.add_subplot(cells[1])
        draw(above, below, example, sources)
        above.set_title(f"{name}: {example.clip.seconds} s", loc="left", fontsize=10, fontweight="bold", pad=28)
        text = figure.add_subplot(cells[2], frameon=False, xticks=[], yticks=[])
        text.text(0, 0.55, asked(example), va="top", fontsize=8)
    figure.savefig(HERE / "av_compose.png", dpi=90)


if __name__ == "__main__":
    main()

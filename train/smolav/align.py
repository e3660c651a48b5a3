"""First of all, projectors that turn a thing's vectors into (nearly) the embedding of its word.

No language model runs here, so this takes a minute, and it spares the language model's stages the slow part: finding
out what is seen and heard.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from models.layers.init import Params, init_params
from models.smolav.config import SmolAVConfig
from models.smolav.modeling import MediaEmbedder, Projector
from train.data.clips import Clip
from train.data.features import ClipPool, PictureFeatures
from train.data.sources import Sources

Batch = tuple[Any, Any, Any, Any]
"""Pictures and their words, audio tokens and their words."""
SILENCE = "\n"  # stands for moments without a sound
PICTURES, SOUNDS = 128, 4096  # pictures, and audio tokens, per step


def answer_words(sources: Sources) -> tuple[str, ...]:
    """Every word that a thing can have: pictures, digits, instruments, then silence."""
    return (*sources.picture_names, *sources.digits.names, *sources.instruments.names, SILENCE)


def word_embeddings(
    words: Sequence[str], encode: Callable[[str], list[int]], table: Float[np.ndarray, "V D"], rms: float
) -> Float[np.ndarray, "W D"]:
    """The mean token embedding of every word (as it stands within a sentence), scaled to the root mean square."""
    rows = [np.asarray(table)[encode(word if word == SILENCE else f" {word}")].mean(axis=0) for word in words]
    return np.stack([row * rms / np.sqrt(np.mean(row**2)) for row in rows]).astype(np.float32)


def audio_labels(clip: Clip, words: Sequence[str], rate: int) -> Int[np.ndarray, " A"]:
    """The word heard at the middle of each audio token of a clip."""
    times = (np.arange(clip.seconds * rate) + 0.5) / rate
    labels = np.full(len(times), words.index(SILENCE), np.int32)
    for sound in clip.sounds:
        labels[(times >= sound.start) & (times < sound.end)] = words.index(sound.name)
    return labels


def initial_media(
    config: SmolAVConfig, seed: int, video: Float[np.ndarray, "N W"], audio: Float[np.ndarray, "M A"]
) -> Params:
    """A media embedder that standardises like these samples, with random projections and no sense of time yet."""
    _, params = init_params(lambda: MediaEmbedder(config, rngs=nnx.Rngs(seed)))
    for name, sample in (("video", video), ("audio", audio)):
        params[name]["mean"] = jnp.asarray(sample.mean(axis=0))
        params[name]["std"] = jnp.asarray(sample.std(axis=0) + 1e-3)
    params["time"]["kernel"] = jnp.zeros_like(params["time"]["kernel"])
    return params


def _word_loss(
    projected: Float[Array, "B T D"], labels: Int[Array, " B"], words: Float[Array, "W D"]
) -> tuple[Array, Array]:
    """Cross entropy over the words by inner product, of the single vectors and of their mean; and the error."""
    mean = jnp.mean(projected, axis=1)
    total = jnp.float32(0)
    for vectors in (projected, mean[:, None]):
        scores = jax.nn.log_softmax(jnp.einsum("btd,wd->btw", vectors, words))
        total -= jnp.mean(jnp.take_along_axis(scores, labels[:, None, None], axis=-1))
    target = words[labels][:, None]
    distance = jnp.mean(jnp.square(projected - target)) / jnp.mean(jnp.square(words))
    return total + distance, jnp.mean(jnp.argmax(mean @ words.T, axis=-1) == labels)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures and audio tokens with the words that belong to them.

    Attributes:
        pictures: encoded pictures.
        shown: numbers of those that are used.
        picture_words: the word of each of these.
        sounds: audio tokens, float16.
        sound_words: the word of each.
    """

    pictures: PictureFeatures
    shown: Int[np.ndarray, " n"]
    picture_words: Int[np.ndarray, " n"]
    sounds: Float[np.ndarray, "N W"]
    sound_words: Int[np.ndarray, " N"]

    @classmethod
    def of(
        cls,
        words: Sequence[str],
        pictures: PictureFeatures,
        shown: Int[np.ndarray, " n"],
        pool: ClipPool,
        clips: Sequence[int] | Int[np.ndarray, " c"],
        rate: int,
    ) -> Self:
        """These pictures of the pool's sources, and the audio tokens (so many per second) of these clips of the pool.

        Words of pictures come first in `words`, as in `answer_words`.
        """
        numbers = [int(clip) for clip in clips]
        labels = np.concatenate([audio_labels(pool.clip(i), words, rate) for i in numbers])
        heard = np.concatenate([pool.audio(i).astype(np.float16) for i in numbers])
        return cls(pictures, shown, pool.sources.picture_labels[shown].astype(np.int32), heard, labels)

    @functools.cached_property
    def _cumulative(self) -> Float[np.ndarray, " N"]:
        frequency = np.bincount(self.sound_words).astype(np.float64)
        weight = (1 / np.maximum(frequency, 1))[self.sound_words]  # every word as often, silence too
        return np.cumsum(weight) / weight.sum()

    def draw(self, rng: np.random.Generator, pictures: int = PICTURES, sounds: int = SOUNDS) -> Batch:
        """So many pictures [B, tokens, W] and audio tokens [N, 1, W], each with its word."""
        rows = rng.integers(len(self.shown), size=pictures)
        tokens = np.searchsorted(self._cumulative, rng.random(sounds))
        return (
            self.pictures.take(self.shown[rows]),
            self.picture_words[rows],
            self.sounds[tokens].astype(np.float32)[:, None],
            self.sound_words[tokens],
        )

    def initial_media(self, config: SmolAVConfig, seed: int) -> Params:
        """A media embedder that standardises like samples of these, see `initial_media`."""
        sample = np.random.default_rng([seed, 2]).choice(self.shown, min(len(self.shown), 300), replace=False)
        video = self.pictures.take(sample).reshape(-1, config.video_width)
        return initial_media(config, seed, video, self.sounds.astype(np.float32))


def alignment_loss(
    graph: nnx.GraphDef, table: Float[np.ndarray, "W D"], params: Params, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    """How far both projectors are from the words' embeddings; and the share of nearest words that are right."""
    module = nnx.merge(graph, params)
    seen, seen_labels, sound, sound_labels = batch
    video_loss, video_right = _word_loss(module.video(seen), seen_labels, jnp.asarray(table))
    audio_loss, audio_right = _word_loss(module.audio(sound), sound_labels, jnp.asarray(table))
    return video_loss + audio_loss, {"pictures": video_right, "sounds": audio_right}


def alignment_optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW along half a cosine to zero; the standardisation stays as it is."""
    return optax.chain(
        optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=0.01),
        optax.stateless(lambda updates, _: _projections_only(updates)),
    )


def align(
    media: tuple[nnx.GraphDef, Params],
    table: Float[np.ndarray, "W D"],
    examples: Examples,
    *,
    steps: int,
    rate: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> Params:
    """Fits both projectors; returns the media parameters.

    Args:
        media: the embedder's graph definition, and `initial_media`'s parameters.
        table: embeddings of the words.
        examples: what is seen and heard.
        steps: optimizer steps.
        rate: learning rate, along half a cosine to zero.
        seed: of the order.
        log: called now and then with the step and what is measured.
    """
    graph, params = media
    tx = alignment_optimizer(rate, steps)

    @jax.jit
    def step(params: Params, state: optax.OptState, batch: Batch) -> tuple[Params, optax.OptState, dict]:
        loss = functools.partial(alignment_loss, graph, table)
        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to integer step counts
            updates, state = tx.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state, {"loss": value, **right}

    state = tx.init(params)
    rng = np.random.default_rng([seed, 1])
    for number in range(steps):
        params, state, measured = step(params, state, examples.draw(rng))
        if number % 50 == 0 or number == steps - 1:
            log(number, {name: float(value) for name, value in measured.items()})
    return params


def _projections_only(updates: Any) -> Params:
    """Leaves the standardisation as it is."""
    return {
        name: part
        if name == "time"
        else {**part, "mean": jnp.zeros_like(part["mean"]), "std": jnp.zeros_like(part["std"])}
        for name, part in updates.items()
    }


def projector_accuracy(
    media: tuple[nnx.GraphDef, Params], table: Float[np.ndarray, "W D"], examples: Examples
) -> dict[str, float]:
    """How often the nearest word is right: of pictures, of audio tokens, and of those where something sounds."""
    module: MediaEmbedder = nnx.merge(*media)

    def right(projector: Projector, vectors: Float[np.ndarray, "N T W"], words: np.ndarray) -> np.ndarray:
        parts = [projector(jnp.asarray(vectors[i : i + 512])).mean(axis=1) for i in range(0, len(vectors), 512)]
        return np.argmax(np.concatenate(parts) @ table.T, axis=-1) == words

    seen = right(module.video, examples.pictures.take(examples.shown), examples.picture_words)
    heard = right(module.audio, examples.sounds.astype(np.float32)[:, None], examples.sound_words)
    sounding = examples.sound_words != len(table) - 1
    found = {"pictures": seen, "sounds": heard, "sounds without silence": heard[sounding]}
    return {name: float(np.mean(values)) for name, values in found.items()}

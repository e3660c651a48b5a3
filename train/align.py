"""First of all, projectors that turn a thing's vectors into (nearly) the embedding of its word.

No language model runs here, so this takes a minute, and it spares the language model's stages the slow part: finding
out what is seen and heard.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from models.interface import Params, create
from models.smolav.config import SmolAVConfig
from models.smolav.modeling import MediaEmbedder
from train.clips import Clip
from train.features import ClipPool, PictureFeatures
from train.sources import Sources

SILENCE = "\n"  # stands for moments without a sound
ACCURACY_PICTURES = 1000
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
    _, params = create(lambda: MediaEmbedder(config, rngs=nnx.Rngs(seed)))
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


def align(
    config: SmolAVConfig,
    media: tuple[nnx.GraphDef, Params],
    words: tuple[Sequence[str], Float[np.ndarray, "W D"]],
    sources: Sources,
    pictures: PictureFeatures,
    pool: ClipPool,
    *,
    steps: int,
    rate: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> Params:
    """Fits both projectors; returns the media parameters.

    Args:
        config: sizes.
        media: the embedder's graph definition, and `initial_media`'s parameters.
        words: the words and their embeddings.
        sources: labels of the pictures.
        pictures: encoded pictures.
        pool: clips whose sounds are used.
        steps: optimizer steps.
        rate: learning rate, along half a cosine to zero.
        seed: of the order.
        log: called now and then with the step and what is measured.
    """
    graph, params = media
    names, table = words
    labels = np.concatenate([audio_labels(pool.clip(i), names, config.audio_rate) for i in range(pool.config.count)])
    heard = np.concatenate([pool.audio(i).astype(np.float16) for i in range(pool.config.count)])
    frequency = np.bincount(labels, minlength=len(names)).astype(np.float64)
    weight = (1 / np.maximum(frequency, 1))[labels]  # every word as often, silence too
    cumulative = np.cumsum(weight) / weight.sum()
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=0.01)

    @jax.jit
    def step(params: Params, state: optax.OptState, batch: tuple[Array, ...]) -> tuple[Params, optax.OptState, dict]:
        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            module = nnx.merge(graph, params)
            seen, seen_labels, sound, sound_labels = batch
            video_loss, video_right = _word_loss(module.video(seen), seen_labels, jnp.asarray(table))
            audio_loss, audio_right = _word_loss(module.audio(sound), sound_labels, jnp.asarray(table))
            return video_loss + audio_loss, {"pictures": video_right, "sounds": audio_right}

        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to integer step counts
            updates, state = tx.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, _projections_only(updates)), state, {"loss": value, **right}

    state = tx.init(params)
    rng = np.random.default_rng([seed, 1])
    for number in range(steps):
        shown = rng.integers(len(sources.picture_labels), size=PICTURES)
        tokens = np.searchsorted(cumulative, rng.random(SOUNDS))
        batch = (
            pictures.take(shown),
            sources.picture_labels[shown].astype(np.int32),
            heard[tokens].astype(np.float32)[:, None],
            labels[tokens],
        )
        params, state, measured = step(params, state, batch)
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
    config: SmolAVConfig,
    media: tuple[nnx.GraphDef, Params],
    words: tuple[Sequence[str], Float[np.ndarray, "W D"]],
    pictures: PictureFeatures,
    pool: ClipPool,
) -> dict[str, float]:
    """How often the nearest word is right: for the pictures of a pool's sources, and for its single audio tokens."""
    module: MediaEmbedder = nnx.merge(*media)
    names, table = words
    shown = np.arange(min(len(pool.sources.picture_labels), ACCURACY_PICTURES))
    clips = range(pool.config.count)
    cases = {
        "pictures": (module.video, pictures.take(shown), pool.sources.picture_labels[shown]),
        "sounds": (
            module.audio,
            np.concatenate([pool.audio(i) for i in clips])[:, None],
            np.concatenate([audio_labels(pool.clip(i), names, config.audio_rate) for i in clips]),
        ),
    }
    result = {}
    for name, (projector, vectors, labels) in cases.items():
        parts = [projector(jnp.asarray(vectors[i : i + 512])).mean(axis=1) for i in range(0, len(vectors), 512)]
        result[name] = float(np.mean(np.argmax(np.concatenate(parts) @ table.T, axis=-1) == labels))
    return result

"""A tiny run on made-up features, without encoders or downloads: every class has its own random vector."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from models.decoder import Decoder
from models.layers.init import Params, init_params
from models.smolav.config import SmolAVConfig
from models.smolav.lora import init_lora
from models.smolav.modeling import MediaEmbedder
from models.smolav.preprocess import Chat
from train.data.clips import Clip, ClipConfig, clip_at
from train.data.features import PoolConfig
from train.data.sources.items import Sounds, Sources, join_sounds
from train.smolav import language_model
from train.smolav.align import audio_labels
from train.smolav.batches import BatchMaker
from train.smolav.config import Bucket, Stage, TrainConfig
from train.smolav.loop import Run

MODEL = SmolAVConfig.tiny(video_grid=2, audio_rate=2)
POOL = PoolConfig(ClipConfig(seconds=(3, 5), items=(2, 3)), count=6, seed=3)
CONFIG = TrainConfig(
    model=MODEL,
    buckets={"clips": Bucket(POOL, length=96, batch=2, questions=4)},
    stages=(
        Stage("first", 6, 1e-2, 5e-3, (("clips", 1.0),), "clips"),
        Stage("second", 4, 5e-3, 1e-3, (("clips", 1.0),), "clips"),
    ),
    warmup=2,
    save_every=3,
    validate_every=5,
    log_every=1,
    pictures=20,
)
CHAT = Chat(before=(1, 2), after=(3, 4), end=3)


def encode(text: str) -> list[int]:
    """One token per word, by its letters."""
    return [5 + sum(word.encode()) % 90 for word in text.split()]


def _sounds(names: tuple[str, ...]) -> Sounds:
    recordings = [np.full(8000, 1000, np.int16)] * (2 * len(names))
    labels = [i % len(names) for i in range(2 * len(names))]
    return join_sounds(recordings, labels, names, [f"made up {i}" for i in range(len(labels))])


SOURCES = Sources(
    np.arange(20) % 5,
    ("cat", "dog", "ship", "bird", "frog"),
    _sounds(("one", "two", "six")),
    _sounds(("harp", "flute", "organ")),
)


class SyntheticPictures:
    """A vector per class, repeated over the frame's tokens."""

    def __init__(self) -> None:
        shape = (len(SOURCES.picture_names), 1, MODEL.video_width)
        self.vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def take(self, pictures: np.ndarray) -> np.ndarray:
        labels = SOURCES.picture_labels[np.asarray(pictures, np.int64)]
        return np.repeat(self.vectors[labels], MODEL.frame_tokens, axis=1)


class SyntheticPool:
    """A vector per sound."""

    config, sources = POOL, SOURCES

    def clip(self, index: int) -> Clip:
        return clip_at(POOL.seed, index, SOURCES, POOL.clips)

    def audio(self, index: int) -> np.ndarray:
        words = (*SOURCES.digits.names, *SOURCES.instruments.names, "\n")
        vectors = np.random.default_rng(1).normal(size=(len(words), MODEL.audio_width)).astype(np.float32)
        return vectors[audio_labels(self.clip(index), words, MODEL.audio_rate)]


def batch_maker(config: TrainConfig = CONFIG) -> BatchMaker:
    return BatchMaker(config, {"clips": SyntheticPool()}, SyntheticPictures(), encode, CHAT)


def tiny_run(workdir: Path, config: TrainConfig = CONFIG) -> tuple[Run, Params]:
    """A run of the tiny model, and its initial parameters."""
    _, params = init_params(lambda: Decoder(MODEL.decoder, rngs=nnx.Rngs(0)))
    graph, media = init_params(lambda: MediaEmbedder(MODEL, rngs=nnx.Rngs(1)))
    batches = batch_maker(config)
    validation = {"clips": [batches.training(1000)]}
    trained = {"media": media, "lora": init_lora(jax.random.key(2), MODEL.decoder, MODEL.lora_rank)}
    workdir.mkdir(parents=True, exist_ok=True)
    return Run(config, graph, language_model.freeze(params), batches, validation, workdir), trained


def with_last_stage(config: TrainConfig, steps: int) -> TrainConfig:
    """The configuration with so many steps in its last stage."""
    stages = (*config.stages[:-1], dataclasses.replace(config.stages[-1], steps=steps))
    return dataclasses.replace(config, stages=stages)

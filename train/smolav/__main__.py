"""Trains SmolAV.

    python -m train.smolav --config train/configs/smolav.py --workdir runs/smolav

Killed at any moment and started again with the same arguments, it resumes at its newest checkpoint and gives the
same losses as if it had not been killed. SIGTERM ends it after the running step, with a checkpoint and exit status 143.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import tyro
from flax import nnx
from jax.sharding import AxisType

from models import command
from models.devices import Devices, OnDevices
from models.errors import UserError
from models.layers.init import Params, abstract_params
from models.smolav.config import LAYOUTS
from models.smolav.encoders import Encoders
from models.smolav.lora import init_lora
from models.smolav.modeling import MediaEmbedder
from models.smolav.params import read_trained
from models.smolav.preprocess import Chat, EncodedMedia
from models.smolav.smollm2 import load_smollm2
from models.text.tokenizers import load_smollm2_tokenizer
from train.data.features import ClipPool, PictureFeatures, sources_for
from train.smolav import align, language_model
from train.smolav.batches import Batch, BatchMaker, collate
from train.smolav.config import DEFAULT_CONFIG, TrainConfig, read_config
from train.smolav.loop import Run, train

VALIDATION_ROWS = 24
ACCURACY_PICTURES = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains SmolAV; resumes where it was."""

    config: Path = DEFAULT_CONFIG
    """The run's configuration."""
    workdir: Path = Path("runs/smolav")
    """Where checkpoints, metrics.csv and the plot are written."""
    start: Path | None = None
    """Begin with the trained tensors in this folder (models/smolav, or an export), instead of aligning projectors."""
    stop_at: int | None = None
    """Stop after so many steps of the whole run."""
    skip_damaged: bool = False
    """Move damaged checkpoints to WORKDIR/damaged, and resume at the newest whole one."""
    devices: OnDevices = Devices()


def open_pools(config: TrainConfig, encoders: Encoders) -> tuple[dict[str, ClipPool], dict[str, PictureFeatures]]:
    """The clips of every bucket, and the pictures of every split that they need."""
    splits = {bucket.pool.split for bucket in config.buckets.values()}
    sources = {split: sources_for(split, config.pictures) for split in splits}
    pools = {
        name: ClipPool(bucket.pool, sources[bucket.pool.split], encoders) for name, bucket in config.buckets.items()
    }
    return pools, {split: PictureFeatures(split, encoders) for split in splits}


def validation_batches(
    config: TrainConfig, batches: BatchMaker, pictures: dict[str, PictureFeatures]
) -> dict[str, list[Batch]]:
    """The same batches of canonical questions every time, both layouts in turn."""
    result = {}
    for name in sorted({stage.validate for stage in config.stages}):
        bucket, pool = config.buckets[name], batches.pools[name]
        rows = []
        for index in range(min(bucket.pool.count, VALIDATION_ROWS)):
            clip = pool.clip(index)
            media = EncodedMedia(pictures[bucket.pool.split].take(clip.picture_ids), pool.audio(index))
            layout = LAYOUTS[index % len(LAYOUTS)]
            rng = np.random.default_rng([config.seed, index])
            rows.append((batches.packed(rng, clip, media, bucket, layout, canonical=True), media))
        result[name] = [
            collate(rows[i : i + bucket.batch], bucket.length, bucket.targets)
            for i in range(0, len(rows) - bucket.batch + 1, bucket.batch)
        ]
    return result


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, 2 after a user's mistake, or 143 after SIGTERM (as SystemExit)."""
    options = tyro.cli(Options, args=arguments, prog="python -m train.smolav", description=__doc__)
    log = functools.partial(print, flush=True)
    return command.run(lambda: _train(options, log), keep_programs=True, devices=options.devices, hears_sigterm=True)


def _train(options: Options, log: Callable[[str], None]) -> None:
    if options.stop_at is not None and options.stop_at < 1:
        raise UserError(f"--stop-at must be at least 1 step, not {options.stop_at}.")
    config = read_config(options.config)
    decoder, params = load_smollm2()
    if decoder != config.model.decoder:
        raise UserError("The language model's sizes are not those of the configuration; correct `model.decoder`.")
    # Its losses leave shardings to the compiler.
    with options.devices.placed(decoder.num_key_value_heads, "SmolAV", AxisType.Auto):
        start = options.start and read_trained(options.start, config.model)
        run_training(config, params, options.workdir, options.stop_at, log, start, skip_damaged=options.skip_damaged)


def run_training(
    config: TrainConfig,
    decoder: Params,
    workdir: Path,
    stop_at: int | None,
    log: Callable[[str], None],
    start: Params | None = None,
    *,
    skip_damaged: bool = False,
) -> None:
    """Prepares the features and trains.

    Args:
        config: the run's configuration.
        decoder: the language model's parameters.
        workdir: folder for checkpoints, metrics and the plot.
        stop_at: stops after so many steps of the whole run.
        log: prints a line.
        start: trained parameters to begin with; without them the projectors are aligned first.
        skip_damaged: moves damaged checkpoints away and resumes at the newest whole one.

    Raises:
        UserError: if the folder cannot be written, or holds no checkpoint to resume at but damaged or another run's.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{workdir} cannot be written ({problem.strerror}); name another --workdir.") from problem
    encoders = Encoders.load(config.model)
    pools, pictures = open_pools(config, encoders)
    tokenizer = load_smollm2_tokenizer()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    batches = BatchMaker(config, pools, pictures["train"], encode, Chat.smollm2(encode))
    validation = validation_batches(config, batches, pictures)
    graph, _ = abstract_params(lambda: MediaEmbedder(config.model, rngs=nnx.Rngs(0)))
    run = Run(config, graph, language_model.freeze(decoder), batches, validation, workdir, log)
    embeddings, unseen = decoder["tokens"]["embedding"], pictures["validation"]

    def begin() -> Params:
        return start or initial(config, graph, encode, embeddings, batches, unseen, log)

    train(run, begin, stop_at, skip_damaged=skip_damaged)


def initial(
    config: TrainConfig,
    graph: nnx.GraphDef,
    encode: Callable[[str], list[int]],
    embeddings: np.ndarray,
    batches: BatchMaker,
    unseen: PictureFeatures,
    log: Callable[[str], None],
) -> Params:
    """The parameters before the first step: projectors aligned to words, low-rank updates of nothing."""
    pool, model = batches.pools[config.align_bucket], config.model
    sample = np.random.default_rng(config.seed).integers(config.align_pictures, size=1024)
    video = batches.pictures.take(sample).reshape(-1, model.video_width)
    audio = np.concatenate([pool.audio(i) for i in range(min(200, pool.config.count))])
    media = align.initial_media(model, config.seed, video, audio)
    words = align.answer_words(pool.sources)
    table = align.word_embeddings(words, encode, embeddings, model.embedding_rms)
    shown = np.arange(min(config.align_pictures, len(pool.sources.picture_labels)))
    clips, rate = range(pool.config.count), model.audio_rate
    aligned = align.align(
        (graph, media),
        table,
        align.Examples.of(words, batches.pictures, shown, pool, clips, rate),
        steps=config.align_steps,
        rate=config.align_rate,
        seed=config.seed,
        log=lambda step, values: log(f"align {step} " + " ".join(f"{k} {v:.3f}" for k, v in values.items())),
    )
    held_out = batches.pools[config.stages[0].validate]
    shown = np.arange(min(ACCURACY_PICTURES, len(held_out.sources.picture_labels)))
    held = align.Examples.of(words, unseen, shown, held_out, range(held_out.config.count), rate)
    found = align.projector_accuracy((graph, aligned), table, held)
    log("aligned, nearest word right: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return {"media": aligned, "lora": init_lora(jax.random.key(config.seed), model.decoder, model.lora_rank)}


if __name__ == "__main__":
    sys.exit(main())

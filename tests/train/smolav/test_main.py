"""Training and export at toy size: real encoders, a random decoder of two layers, and a cache of made-up sources."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.hub.package_index import cache_root
from models.layers.init import init_params
from models.placement import divided
from models.smolav.config import SmolAVConfig
from models.smolav.params import read_config, read_trained, trained_shapes
from tests.processes import Processes
from train.checkpoint import manager, restore
from train.data.clips import ClipConfig
from train.data.features import PoolConfig
from train.data.sources import cifar10, instruments
from train.export import export
from train.log import read_metrics
from train.smolav.__main__ import run_training
from train.smolav.config import DEFAULT_CONFIG, Bucket, Stage, TrainConfig
from train.smolav.config import read_config as read_run
from train.smolav.loop import fresh_state

CLIPS = ClipConfig(seconds=(3, 3), items=(2, 2))
CONFIG = TrainConfig(
    model=dataclasses.replace(SmolAVConfig.smollm2_135m(), decoder=DecoderConfig.tiny(vocab_size=49_152)),
    buckets={
        "short": Bucket(PoolConfig(CLIPS, 2, seed=1), 128, batch=1, questions=2),
        "validate": Bucket(PoolConfig(CLIPS, 1, seed=2, split="validation"), 128, batch=1, questions=2),
    },
    stages=(Stage("short", 2, 1e-3, 1e-4, (("short", 1.0),), "validate"),),
    pictures=12,
    align_pictures=12,
    align_steps=3,
    log_every=1,
)


def train_in(workdir: Path) -> None:
    """Two steps of batches of two rows."""
    buckets = {name: dataclasses.replace(bucket, batch=2) for name, bucket in CONFIG.buckets.items()}
    buckets["validate"] = dataclasses.replace(buckets["validate"], batch=1)
    config = dataclasses.replace(CONFIG, buckets=buckets)
    _, decoder = init_params(lambda: Decoder(CONFIG.model.decoder, rngs=nnx.Rngs(0)))
    run_training(config, decoder, workdir, None, lambda line: None)


def _arrays() -> dict[str, dict[str, np.ndarray]]:
    """Random pictures and one-second tones under the names by which the sources keep what they have decoded."""
    rng = np.random.default_rng(0)
    pictures = {}
    for name, count in (("train", cifar10.VALIDATION + 40), ("test", 40)):
        pictures[f"{name}_images"] = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        pictures[f"{name}_labels"] = np.arange(count) % len(cifar10.NAMES)
    notes, seconds = 10, np.arange(16_000) / 16_000
    pitches = 200 + 10 * np.arange(notes * len(instruments.NAMES))
    tones = (8000 * np.sin(2 * np.pi * pitches[:, None] * seconds)).astype(np.int16)
    labels = np.repeat(np.arange(len(instruments.NAMES)), notes)
    sounds = {
        "samples": tones.ravel(),
        "offsets": np.arange(len(tones) + 1) * tones.shape[1],
        "labels": labels,
        "keys": np.array([f"{instruments.NAMES[label]} {i}" for i, label in enumerate(labels)]),
    }
    return {f"{cifar10.PACKAGE}-{cifar10.VERSION}": pictures, "instruments-" + "-".join(instruments.NAMES): sounds}


@pytest.fixture
def made_up_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of made-up sources; the encoders' weights are the real ones."""
    cache = tmp_path / "cache"
    (cache / "decoded").mkdir(parents=True)
    real = cache_root() / "files"
    real.mkdir(parents=True, exist_ok=True)
    (cache / "files").symlink_to(real)
    for name, arrays in _arrays().items():
        np.savez(cache / "decoded" / f"{name}.npz", **arrays)
    with monkeypatch.context() as patch:
        patch.setenv("ACCKV_CACHE", str(cache))
        for load in (cifar10.load, instruments.load):  # which keep what they have loaded
            load.cache_clear()
        yield
        for load in (cifar10.load, instruments.load):
            load.cache_clear()


@pytest.mark.usefixtures("made_up_cache")
def test_a_trained_model_is_exported_as_it_was_trained(tmp_path: Path) -> None:
    workdir, out = tmp_path / "run", tmp_path / "out"
    _, decoder = init_params(lambda: Decoder(CONFIG.model.decoder, rngs=nnx.Rngs(0)))
    said: list[str] = []
    run_training(CONFIG, decoder, workdir, None, said.append)
    assert any(line.startswith("aligned, nearest word right") for line in said)
    assert any(line.startswith("step 2 short validation") for line in said)
    rows = read_metrics(workdir / "metrics.csv")
    assert [(row["step"], row["kind"]) for row in rows] == [("1", "train"), ("2", "train"), ("2", "validation")]
    assert all(0 < float(row["loss"]) < 20 for row in rows)

    assert export(CONFIG, workdir, out) == 2
    assert read_config(out) == CONFIG.model
    like = jax.eval_shape(lambda parts: fresh_state(CONFIG, parts), trained_shapes(CONFIG.model))
    with manager(workdir / "checkpoints", CONFIG.keep) as checkpoints:
        found = restore(checkpoints, like, CONFIG.identity())
    assert found is not None
    exported = read_trained(out, CONFIG.model)
    jax.tree.map(np.testing.assert_array_equal, exported, jax.tree.map(np.asarray, found[1]["trained"]))
    assert any(np.any(pair["b"] != 0) for pair in exported["lora"].values())  # which start at zero
    assert (out / "training.csv").read_bytes() == (workdir / "metrics.csv").read_bytes()
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")

    said.clear()
    run_training(CONFIG, decoder, tmp_path / "next", 1, said.append, exported)
    assert [line.split(" loss")[0] for line in said] == ["step 1 short", "step 1 short validation"]
    assert export(CONFIG, tmp_path / "next", tmp_path / "further") == 1
    mean = exported["media"]["audio"]["mean"]  # which no step changes, and another run would have from its own sounds
    np.testing.assert_array_equal(read_trained(tmp_path / "further", CONFIG.model)["media"]["audio"]["mean"], mean)


@pytest.mark.complete
@pytest.mark.usefixtures("made_up_cache")
def test_a_mesh_divides_the_rows_and_changes_no_loss(tmp_path: Path) -> None:
    train_in(tmp_path / "one")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        assert not divided({"x": np.zeros((2, 3))})["x"].sharding.is_fully_replicated
        train_in(tmp_path / "two")
    with Processes.start("tests.train.smolav.two_processes", [str(tmp_path / "processes")], devices=1) as both:
        said = both.outputs(600)
    assert [status for status, _, _ in said] == [0, 0], said
    one, *others = (read_metrics(tmp_path / name / "metrics.csv") for name in ("one", "two", "processes"))
    assert [row["kind"] for row in one] == ["train", "train", "validation"]
    for other in others:
        losses = [[float(row["loss"]) for row in rows] for rows in (one, other)]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_rows_of_the_recipe_have_room_for_their_longest_clips() -> None:
    config = read_run(DEFAULT_CONFIG)
    assert read_run(DEFAULT_CONFIG.with_name("smolav2_continued.py")).stages == config.stages[3:]
    assert config.buckets["longest"].pool.clips.seconds[1] == 120
    for name, bucket in config.buckets.items():
        things, seconds = bucket.pool.clips.items[1], bucket.pool.clips.seconds[1]
        answer = 2 * things + 1 if "transcript" in bucket.kinds else 5  # tokens: two a word, and the end
        media = seconds * (config.model.frame_tokens + config.model.audio_rate)
        assert 4 + media + 20 + answer <= bucket.length, name
        assert answer <= bucket.targets, name


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        export(CONFIG, tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()

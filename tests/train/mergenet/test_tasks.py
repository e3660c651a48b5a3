"""Tasks of their own for source and target: both ways, resumed, exported, started from weights, refused."""

import csv
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType
from transformers import AutoModelForSequenceClassification, AutoTokenizer, SiglipConfig, SiglipModel

from mergenet_jax import MergeConfig, Pair
from models.bert.config import BertConfig
from models.errors import UserError
from models.vision.siglip import SiglipConfig as Tower
from tests.train.mergenet import tiny
from train.mergenet.__main__ import main
from train.mergenet.arms import ARMS, SOURCE, TARGET, set_up
from train.mergenet.config import read_recipe
from train.mergenet.loop import Run, train
from train.mergenet.task_config import TaskRecipe
from train.mergenet.tasks.interface import Data
from train.mergenet.tasks.pictures import load_vision
from train.mergenet.tasks.registry import make_task
from train.mergenet.tasks.spec import ENCODERS, TOWERS, AdamW, TaskSpec
from train.mergenet.tasks.trainer import TaskTrainer

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "vocab_size": 400, "hidden_size": 32, "max_position_embeddings": 72}
SIZES |= {"initializer_range": 0.1, "hidden_dropout_prob": 0.0}
EPOCHS = 3
OUT = "layers/0/attn/out/kernel"


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    tiny.register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "one_bert", BertConfig.tiny(**SIZES))
        patch.setitem(ENCODERS, "one_distilbert", BertConfig.tiny("distilbert", **SIZES))
        patch.setitem(TOWERS, "one_siglip", Tower(16, 24, 1, 2, 24, 6))
        yield
    tiny.unregister()


def spec(task: Any, **changes: Any) -> TaskSpec:
    text = "one_distilbert" if task == "reviews" else "one_bert"
    length = 72 if task == "questions" else 24
    base = TaskSpec(task, text, vision="one_siglip", length=length, stride=16, answers=16, width=16, batch=8)
    return dataclasses.replace(base, **{"optimizer": AdamW(1e-2)} | changes)


def recipe(source: Any = "questions", target: Any = "reviews", **changes: Any) -> TaskRecipe:
    kernel = f"encoder/{OUT}" if target in ("reviews", "questions") else f"text/{OUT}"
    pairs, own = (Pair(kernel, kernel),), (Pair(kernel.replace("out", "v"), kernel),)
    merge = MergeConfig(cycle=2, rescale="frobenius", **tiny.STILL)
    base = TaskRecipe(spec(source), spec(target), pairs, own, merge=merge, data="fixtures", epochs=EPOCHS)
    return dataclasses.replace(base, **changes)


def rows(workdir: Path) -> list[dict[str, str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def losses(workdir: Path, name: str) -> list[float]:
    return [float(row["loss"]) for row in rows(workdir) if (row["name"], row["kind"]) == (name, "train")]


def direct() -> TaskRecipe:
    """Made where it is used: the encoders that it names are there while this module's tests run."""
    return recipe("questions", "reviews", arm="direct", keep=EPOCHS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[str]]:
    """Reviews that are given a kernel of questions in every second step."""
    folder, said = tmp_path_factory.mktemp("direct"), []
    return folder, train(Run(direct(), (0,), folder, log=said.append)), said


def test_both_learn(run: Any) -> None:
    folder, result, said = run
    assert said[0].startswith("target: reviews, one_distilbert from random weights with a vocabulary of the training")
    assert said[1].startswith("source: questions, one_bert from random weights")
    for name in (SOURCE, TARGET):
        assert losses(folder, name)[-1] < losses(folder, name)[0]
    found = result["seeds"]["0"]
    assert found[TARGET].keys() == {"epoch", "validation_accuracy", "test_accuracy"}
    assert found[SOURCE].keys() == {"epoch", "validation_f1", "test_f1", "test_exact"}
    validated = [float(row["accuracy"]) for row in rows(folder) if row["kind"] == "validation" and row["accuracy"]]
    assert found[TARGET]["validation_accuracy"] == max(validated) == validated[found[TARGET]["epoch"] - 1]
    assert validated.index(max(validated)) == found[TARGET]["epoch"] - 1


@pytest.mark.complete
def test_both_ways_between_tasks(tmp_path: Path) -> None:
    train(Run(recipe(direction="both", epochs=5), (0,), tmp_path, log=lambda line: None))
    for name in (SOURCE, TARGET):
        assert losses(tmp_path, name)[-1] < 0.9 * losses(tmp_path, name)[0]
    transfers = [row for row in rows(tmp_path) if row["kind"] == "transfer"]
    assert {row["name"] for row in transfers} == {"source->target", "target->source"}
    assert [float(row["transfers"]) for row in transfers] == [2] * 2 * 5  # 32 reviews: 4 steps, every other
    assert all(float(row["norm"]) == pytest.approx(1, abs=1e-3) for row in transfers)


@pytest.mark.complete
def test_a_resumed_run_is_the_same(run: Any, tmp_path: Path) -> None:
    """The source's epochs end within the target's, so that its batches must continue where they were."""
    whole, result, _ = run
    resumed, said = tmp_path / "resumed", []
    work = TaskTrainer(Run(direct(), (0,), tmp_path, log=said.append), direct(), None)
    assert work.steps == 4 and work._orders(SOURCE)[0].steps == 3
    shutil.copytree(whole, resumed)
    (resumed / "result.json").unlink()
    shutil.rmtree(resumed / "checkpoints" / "2")
    shutil.rmtree(resumed / "checkpoints" / "3")
    again = train(Run(direct(), (0,), resumed, log=said.append))
    assert "resumed after epoch 1" in said
    assert rows(resumed) == rows(whole) and again == result
    with pytest.raises(UserError, match="holds a run with recipe.target.batch 8, not 4"):
        train(Run(dataclasses.replace(direct(), target=spec("reviews", batch=4)), (0,), whole))


def test_an_exported_classifier_is_read_by_transformers(run: Any) -> None:
    folder, result, _ = run
    model = AutoModelForSequenceClassification.from_pretrained(folder / "export" / TARGET).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "export" / TARGET)
    right = []
    for example in Data("fixtures", {}).open("imdb_reviews", "test"):
        tokens = tokenizer([example["text"].decode()], truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            logits = model(tokens["input_ids"], tokens["attention_mask"]).logits
        right.append(int(logits.argmax()) == example["label"])
    assert np.mean(right) == pytest.approx(result["seeds"]["0"][TARGET]["test_accuracy"], abs=1e-6)


@pytest.mark.complete
def test_a_mesh_divides_the_rows_and_changes_no_loss(run: Any, tmp_path: Path) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        train(Run(direct(), (0,), tmp_path, log=lambda line: None))
    for name in (SOURCE, TARGET):
        np.testing.assert_allclose(losses(tmp_path, name), losses(run[0], name), rtol=1e-2)


@pytest.mark.complete
def test_pictures_and_texts(tmp_path: Path) -> None:
    small = recipe("vqa", "retrieval", arm="direct")
    result: Any = train(Run(small, (0,), tmp_path, log=lambda line: None))
    for name in (SOURCE, TARGET):
        assert losses(tmp_path, name)[-1] < 0.95 * losses(tmp_path, name)[0]
    task = make_task(small.target)
    params, stats = task.load(tmp_path / "export" / TARGET)
    assert not stats and jax.tree.map(np.shape, params) == jax.tree.map(np.shape, task.shapes()[0])
    part = task.prepare(Data("fixtures", {})).split("test")
    found = part.score(jax.device_get(jax.jit(task.answer)(params, part.read(np.arange(part.rows)))))
    own = result["seeds"]["0"][TARGET]
    assert {f"test_{name}": value for name, value in found.items()} == pytest.approx(
        {name: value for name, value in own.items() if name.startswith("test_")}, abs=1e-5
    )
    with pytest.raises(UserError, match="holds another model than the source"):
        make_task(small.source).load(tmp_path / "export" / TARGET)


@pytest.mark.parametrize(
    ("source", "target"),
    [("questions", "reviews"), pytest.param("vqa", "retrieval", marks=pytest.mark.complete)],
)
@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.distils])
def test_every_arm_but_distillation_can_be_set_up(arm: str, source: str, target: str) -> None:
    small = recipe(source, target, arm=arm)
    given = (make_task(small.source).shapes()[0], {}) if ARMS[arm].source == "frozen" else None
    setup = set_up(small, 4, given)
    state = jax.eval_shape(lambda: setup.start(0, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), given)))
    assert set(setup.trained) == ({TARGET, SOURCE} if ARMS[arm].source == "used" else {TARGET})
    assert len(state.adapters) == len(setup.transfers) == ARMS[arm].transfers
    assert all(type(transfer.config) is MergeConfig for transfer in setup.transfers)


def test_a_step_between_tasks_with_pictures(tmp_path: Path) -> None:
    small = recipe("retrieval", "vqa")
    work = TaskTrainer(Run(small, (0,), tmp_path, log=lambda line: None), small, None)
    (batches,) = next(iter(work.feed(0)))
    assert batches[TARGET]["pictures"].shape == (8, 24, 24, 3) and batches[SOURCE]["tokens"].shape == (8, 5, 24)
    state = jax.eval_shape(lambda: work.setup.start(0, None))
    after, told = jax.eval_shape(work.step, state, batches)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert set(told) == {SOURCE, TARGET, "source->target"}


def test_seeds_see_batches_of_their_own(tmp_path: Path) -> None:
    work = TaskTrainer(Run(recipe(), (0, 3), tmp_path, log=lambda line: None), recipe(), None)
    alone = TaskTrainer(Run(recipe(), (3,), tmp_path, log=lambda line: None), recipe(), None)
    for (both,), (one,) in zip(work.feed(2), alone.feed(2), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), both, one)
        assert any((both[TARGET]["tokens"][0] != both[TARGET]["tokens"][1]).ravel())
    state = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.stack([x, x]), alone.setup.start(0, None)))
    state = dataclasses.replace(state, step=jax.ShapeDtypeStruct((), jnp.int32))
    after, told = jax.eval_shape(work.step, state, both)
    assert told[TARGET]["loss"].shape == (2,) and after.step.shape == ()


def test_models_start_from_weights(run: Any, tmp_path: Path) -> None:
    """A checkpoint for questions becomes the encoder of reviews and of retrieval; SigLIP's tower that of pictures."""
    exported = str(run[0] / "export" / SOURCE)
    reviews = make_task(spec("reviews", text="bert_base", weights=exported))
    params, _ = reviews.init(jax.random.key(0))
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 24, "patch_size": 6}
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 9, "projection_size": 16}
    theirs = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    theirs.save_pretrained(tmp_path)
    retrieval = make_task(spec("retrieval", weights=exported, vision_weights=str(tmp_path)))
    both, _ = retrieval.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, both["text"], params["encoder"])
    up = theirs.state_dict()["vision_model.encoder.layers.0.mlp.fc1.weight"].numpy()
    np.testing.assert_array_equal(both["vision"]["layers"]["mlp"]["up"]["kernel"][0], up.T)
    assert jax.tree.map(np.shape, both) == jax.tree.map(np.shape, retrieval.shapes()[0])
    tokenizer = retrieval.prepare(Data("fixtures", {})).tokenizer
    assert "mill" in tokenizer.get_vocab()  # of the questions' texts
    with pytest.raises(UserError, match="vision tower in .* not SiglipConfig"):
        load_vision(tmp_path, TOWERS["siglip_tiny"])
    small = dataclasses.replace(recipe(arm="none"), target=spec("reviews", weights=exported))
    work = TaskTrainer(Run(small, (0,), tmp_path, log=lambda line: None), small, None)
    started = work.weights(work.start((0,)))[TARGET][0]
    jax.tree.map(np.testing.assert_array_equal, started["encoder"], params["encoder"])


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("mergenet_qa_to_reviews", ("--arm", "kd"), "The arm kd needs two classifiers of the same pictures"),
        ("mergenet_qa_to_reviews", ("--target.text", "elmo"), "There is no text encoder 'elmo'; take one of bert_base"),
        ("mergenet_qa_to_reviews", ("--target.length", "200"), "Rows of 200 tokens are longer than the model's 96"),
        ("mergenet_qa_to_reviews", ("--target.batch", "33"), "Batches of 33 cannot be made of 32 rows"),
        ("mergenet_reviews_to_qa", ("--target.weights", "nowhere"), "nowhere"),
        ("mergenet_self_reviews", ("--source-checkpoint", "nowhere"), "nowhere"),
        ("mergenet_vqa_to_retrieval", ("--source.optimizer.warmup", "1"), "warmup is a share of the steps"),
        ("mergenet_retrieval_to_vqa", ("--data", "mnist"), "invalid choice 'mnist'"),
    ],
)
def test_mistakes(
    name: str, more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(["--recipe", name, "--smoke", "--workdir", str(tmp_path), *more]) == 2
    except SystemExit as end:  # what the parser finds by itself
        assert end.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.complete
def test_nan_stops_a_run(tmp_path: Path) -> None:
    wild = spec("reviews", optimizer=AdamW(1e38, warmup=0.0, clip=1e30))
    broken = dataclasses.replace(recipe(arm="none"), target=wild)
    with pytest.raises(UserError, match=r"^Stopped in epoch \d+, step \d+: target: values are not finite"):
        train(Run(broken, (0,), tmp_path, log=lambda line: None))


def test_recipes_go_both_ways() -> None:
    for there, back in (("qa_to_reviews", "reviews_to_qa"), ("vqa_to_retrieval", "retrieval_to_vqa")):
        one, other = (read_recipe(f"mergenet_{name}") for name in (there, back))
        assert (one.source, one.target) == (other.target, other.source)
        assert [(pair.source, pair.target) for pair in one.pairs] == [(p.target, p.source) for p in other.pairs]

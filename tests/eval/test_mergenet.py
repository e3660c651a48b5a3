"""The experiment with MergeNet: what is trained, resumed, compared and refused."""

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from eval.mergenet import COMPARED, Options, main, reads_frozen, results, run_arms
from eval.mergenet_report import draw, summary, table
from tests.train.mergenet import tiny

ARMS = ("none", "frozen")
SCORES = {"none": 0.5, "frozen": 0.4}


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    tiny.register()
    yield
    tiny.unregister()


def test_differences_are_paired_by_seed() -> None:
    random = np.random.default_rng(0)
    scores = {arm: random.uniform(0.3, 0.5, 5) for arm in ("none", "frozen", "zero", "dkd")}
    told = summary(
        {arm: {seed: {"test_f1": x} for seed, x in enumerate(own)} for arm, own in scores.items()}, "test_f1"
    )
    own = {(d["arm"], d["other"]): d for d in told["differences"]}
    wanted = {("frozen", "none"), ("frozen", "zero"), ("frozen", "dkd"), ("zero", "none"), ("zero", "dkd")}
    assert own.keys() == wanted | {("none", "dkd"), ("dkd", "none")}
    for (arm, other), difference in own.items():
        test = stats.ttest_rel(100 * scores[arm], 100 * scores[other]).confidence_interval(0.95)
        found = difference["mean"] - difference["half_width"], difference["mean"] + difference["half_width"]
        np.testing.assert_allclose(found, test, rtol=1e-6)
    np.testing.assert_allclose(told["means"]["none"]["mean"], 100 * scores["none"].mean())


@pytest.mark.complete
def test_an_experiment_from_start_to_table(tmp_path: Path) -> None:
    recipe = tiny.recipe(source_pictures=24, epochs=1)
    options, said = Options(recipe, workdir=tmp_path, arms=ARMS, seeds=(1,)), []
    run_arms(options, said.append)
    assert (tmp_path / "source" / "export" / "target" / "model.safetensors").is_file()
    told = results(options)
    assert list(told["arms"]) == list(ARMS) and all(list(seeds) == [1] for seeds in told["arms"].values())
    assert len(told["arms"]["frozen"][1]["norm"]) == recipe.epochs and not told["arms"]["none"][1]["norm"]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(told))
    text = console.export_text()
    assert "test top1 in %" in text and "- none" in text and all(f"│{arm}" in text for arm in ARMS)
    draw(told, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    again: list[str] = []
    moved = tmp_path.with_name("moved")  # results go along wherever the folder goes
    tmp_path.rename(moved)
    run_arms(dataclasses.replace(options, workdir=moved), again.append)
    assert sum("is finished" in line for line in again) == 1 + len(ARMS)


@pytest.mark.complete
def test_backward_the_target_is_the_source_that_is_trained_first(tmp_path: Path) -> None:
    recipe = tiny.recipe(epochs=1, direction="backward")
    run_arms(Options(recipe, workdir=tmp_path, arms=("frozen",), seeds=(0,)), lambda _: None)
    exported = [tmp_path / name / "export" / "target" / "config.json" for name in ("source", "frozen/0")]
    names = [json.loads(path.read_text())["classifier"]["name"] for path in exported]
    assert names == [recipe.target.name, recipe.source.name]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    found = {arm: {0: {"test_top1": x, "seconds": [0.1], "norm": [], "cosine": []}} for arm, x in SCORES.items()}
    told = {"recipe": "r", "split": "test", "metric": "top1", "arms": found, **summary(found, "test_top1")}
    json.dumps(told, allow_nan=False)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(told))
    text = console.export_text()
    assert "50.00 ± ?" in text and "-10.00 ± ?" in text and "True difference" not in text and "nan" not in text
    draw(told, tmp_path / "plot.png")


def test_arms_are_compared_with_their_controls() -> None:
    arms = ("none", "start", "plus_frozen", "plus_zero", "plus_random")
    told = summary({arm: {seed: {"test_top1": 0.1 * seed} for seed in (0, 1)} for arm in arms}, "test_top1")
    found = {(d["arm"], d["other"]) for d in told["differences"]}
    assert {("plus_frozen", other) for other in ("none", "start", "plus_zero", "plus_random")} <= found
    assert ("start", "plus_zero") not in found and ("start", "none") in found


def test_which_arms_read_the_source_that_was_trained_first() -> None:
    read = {arm for arm in COMPARED if reads_frozen(arm)}
    assert read == {"frozen", "random", "direct", "kd", "dkd", "start", "plus_frozen", "plus_random"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arms", "none", "merge"], "mergenet_cifar10 has no arm 'merge'; take some of none, mergenet,"),
        (["--arms", "none", "none"], "Name at least one arm, and each once."),
        (["--arms"], "Name at least one arm, and each once."),
        (["--recipe", "mergenet_both"], "Arms are compared by what one target gains; give --direction forward"),
        (["--seeds", "-1"], "Seeds must be from 0 to 2147483647, not (-1,)."),
        (["--recipe", "mergenet_self_reviews", "--arms", "kd"], "mergenet_self_reviews has no arm 'kd'"),
        (["--seeds", "1", "1"], "Seeds must be one or more, all different, not (1, 1)."),
        (["--recipe", "mergenet_x"], "There is no recipe 'mergenet_x'; take one of mergenet_both,"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["--workdir", str(tmp_path / "runs"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

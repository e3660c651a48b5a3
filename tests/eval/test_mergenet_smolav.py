"""Scenario 8 at toy size: arms, what is kept and not run again, the table, and users' mistakes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from eval.held_out import GROUPS, HeldOutClips
from eval.intervals import detectable
from eval.mergenet_smolav.__main__ import main
from eval.mergenet_smolav.materials import Materials
from eval.mergenet_smolav.run import TRAINED, Run, run
from eval.mergenet_smolav.table import differences, sentences, table
from mergenet_jax import MergeConfig, Pair, read
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.layers.init import abstract_params, init_params
from models.smolav.modeling import MediaEmbedder
from tests.tiers import quick_first
from tests.train.synthetic import MODEL, SyntheticPictures, SyntheticPool
from train.mergenet.arms import ARMS, SOURCE, TARGET
from train.mergenet.av.arms import learns, set_up
from train.mergenet.av.config import PREFIX, Recipe
from train.mergenet.config import read_recipe, recipe_names

KERNELS = ("video/down/kernel", "audio/down/kernel")
RECIPE = Recipe(
    pairs=tuple(Pair(kernel, kernel) for kernel in KERNELS),
    init_pairs=tuple(Pair(f"{branch}/up/kernel", f"{branch}/up/kernel") for branch in ("video", "audio")),
    width=8,
    pictures=10,
    clips=3,
    source_pictures=20,
    source_clips=6,
    steps=3,
    batch_pictures=4,
    batch_sounds=8,
    merge=MergeConfig(layers=1, heads=2, cycle=2, attention_dropout=0.0, output_dropout=0.0),
    plus=MergeConfig.plus(layers=1, heads=2, cycle=2, init_from_source=True),
    test_pictures=20,
    test_clips=2,
    question_clips=2,
)
SIZES = dataclasses.replace(MODEL, decoder=DecoderConfig.tiny(vocab_size=49152, max_position_embeddings=2048))


def materials(recipe: Recipe = RECIPE) -> Materials:
    """A random SmolAV among made-up things."""
    _, decoder = init_params(lambda: Decoder(SIZES.decoder, rngs=nnx.Rngs(0)))
    _, media = init_params(lambda: MediaEmbedder(SIZES, rngs=nnx.Rngs(1)))
    decoder, media = jax.tree.map(np.asarray, (decoder, media))
    pool, pictures = SyntheticPool(), SyntheticPictures()
    held: Any = HeldOutClips(pool, pictures)
    return Materials(recipe, SIZES, {"decoder": decoder, "media": media}, pictures, pool, held)


@pytest.fixture(scope="module")
def things() -> Materials:
    return materials()


def made(things: Materials, arm: str) -> tuple[Any, dict[str, Any]]:
    """An arm's setup, and batches."""
    setup = set_up(RECIPE, arm, {SOURCE: things.model, TARGET: things.target}, things.table)
    batch = things.training(0).draw(np.random.default_rng(0), 4, 8)
    return setup, {name: batch for name, learner in setup.learners.items() if learner is not None}


@pytest.mark.parametrize("arm", quick_first(("none", "mergenet", "zero", "frozen", "direct", "start", "plus_zero"), 3))
def test_arms_are_set_up(arm: str, things: Materials) -> None:
    setup, batches = made(things, arm)
    fresh = things.training(0).initial_media(things.target, 0)
    state = jax.eval_shape(setup.start, 0, fresh, things.trained["media"])
    after, told = jax.eval_shape(setup.step, state, batches)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    learning = {TARGET, SOURCE} if learns(arm) else {TARGET}
    assert {name for name in told if "->" not in name} == learning
    assert len(state.adapters) == len(told) - len(learning) == ARMS[arm].transfers


def test_what_the_arms_read(things: Materials) -> None:
    """The trained kernels [out, in]; zeros; or noise of their scale."""
    params = {SOURCE: things.trained["media"], TARGET: things.training(0).initial_media(things.target, 0)}
    for arm in ("mergenet", "frozen", "zero", "random", "plus", "plus_frozen", "plus_zero", "plus_random"):
        (transfer,) = made(things, arm)[0].transfers
        groups = read(transfer, params, jax.random.key(0))
        targets, sources = ([np.asarray(matrix) for part in parts for matrix in part] for parts in groups)
        for branch, own, found in zip(("video", "audio"), targets, sources, strict=True):
            np.testing.assert_array_equal(own, params[TARGET][branch]["down"]["kernel"].T)
            kernel = params[SOURCE][branch]["down"]["kernel"].T
            if "random" in arm:
                assert np.abs(found - kernel).mean() > kernel.std()
                assert float(found.std()) == pytest.approx(kernel.std(), rel=0.2)
            else:
                np.testing.assert_array_equal(found, np.zeros_like(kernel) if "zero" in arm else kernel)
        assert (transfer.config.merge == "gated") == ("plus" in arm)


def test_direct_copies_the_shared_kernels(things: Materials) -> None:
    setup, batches = made(things, "direct")
    fresh = things.training(0).initial_media(things.target, 0)
    batches = jax.tree.map(np.zeros_like, batches)  # of which the kernels of the first layer learn nothing
    for name in ("video", "audio"):
        fresh[name]["mean"] = np.zeros_like(fresh[name]["mean"])
    state = jax.jit(setup.start)(0, fresh, things.trained["media"])
    before = jax.tree.map(np.array, state.models[TARGET].params)
    after, _ = setup.step(state, batches)
    kernel = np.asarray(after.models[TARGET].params["video"]["up"]["kernel"])
    theirs = np.asarray(things.trained["media"]["video"]["up"]["kernel"])
    np.testing.assert_allclose(kernel, theirs[:, :8], rtol=1e-4)
    assert np.abs(kernel - before["video"]["up"]["kernel"]).max() > 0.1


def test_start_is_the_source_and_nothing_after_it(things: Materials) -> None:
    setup, _ = made(things, "start")
    fresh = things.training(0).initial_media(things.target, 0)
    params = jax.jit(setup.start)(0, fresh, things.trained["media"]).models[TARGET].params
    assert not setup.transfers and setup.learners[SOURCE] is None and not learns("start")
    kernel, theirs = (np.asarray(of["audio"]["up"]["kernel"]) for of in (params, things.trained["media"]))
    np.testing.assert_allclose(kernel / theirs[:, ::2], (kernel / theirs[:, ::2])[0, 0], rtol=1e-4)
    np.testing.assert_array_equal(params["audio"]["down"]["kernel"], fresh["audio"]["down"]["kernel"])


def test_seeds_differ_in_their_things_and_arms_do_not(things: Materials) -> None:
    own, other = things.training(0), things.training(1)
    assert len(own.shown) == 10 and set(own.shown) != set(other.shown)
    np.testing.assert_array_equal(own.shown, materials().training(0).shown)
    whole = things.training()
    assert set(own.shown) <= set(whole.shown) and len(own.sounds) < len(whole.sounds)


@pytest.mark.complete
def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    loads: list[Recipe] = []
    said: list[str] = []

    def load(recipe: Recipe) -> Materials:
        loads.append(recipe)
        return materials(recipe)

    def make(*arms: str, recipe: Recipe = RECIPE) -> Any:
        return run(Run(recipe, arms, (0,), tmp_path, load, said.append))

    first = make("none")
    assert list(first) == ["none", TRAINED] and len(loads) == 1
    found = first["none"][0]
    assert 0 <= min(found["right"].values()) and set(found["right"]) >= {"pictures", "sounds", "questions"}
    assert sum(found["asked"].values()) > 5 and set(found["asked"]) == set(GROUPS)
    assert found["transfers"] == {} and found["loss"][TARGET] > 0
    assert json.loads((tmp_path / "none" / "seed0.json").read_text()) == found
    assert make("none") == first and len(loads) == 1
    assert said[-1] == "1 of 1 are there already"

    kept = (tmp_path / "none" / "seed0.json").stat().st_mtime_ns
    both = make("none", "frozen")
    assert both["none"] == first["none"] and len(loads) == 2
    assert list(both["frozen"][0]["loss"]) == [TARGET]
    assert both["frozen"][0]["transfers"]["source->target"]["transfers"] == 2
    assert (tmp_path / "none" / "seed0.json").stat().st_mtime_ns == kept
    with pytest.raises(UserError, match="holds a run with recipe.width 8, not 9; name another --workdir"):
        make("none", recipe=dataclasses.replace(RECIPE, width=9))

    (tmp_path / "none" / "seedling.json").touch()  # none of ours
    assert make("none") == both
    (tmp_path / "none" / "seed0.json").write_text("{}")
    with pytest.raises(UserError, match=r"seed0.json holds no result; remove it, and it is measured again"):
        make("none")


def test_pairs_must_fit(tmp_path: Path) -> None:
    lost = dataclasses.replace(RECIPE, pairs=(Pair("video/down/kernel", "video/sideways/kernel"),))
    with pytest.raises(UserError, match="sideways"):
        run(Run(lost, ("zero",), (0,), tmp_path, materials, lambda _: None))
    assert not (tmp_path / "zero").exists()


def test_a_recipe_asks_for_no_more_than_there_is() -> None:
    with pytest.raises(UserError, match="source_pictures can be at most 20, not 21"):
        materials(dataclasses.replace(RECIPE, source_pictures=21))
    with pytest.raises(UserError, match="have up to 2 seconds, and question_clips asks for 2"):
        assert not materials(dataclasses.replace(RECIPE, question_seconds=2)).question_clips


def results() -> dict[str, dict[int, Any]]:
    """Made-up shares; seed 9 has no placebo."""
    shares = {
        "none": {0: 0.60, 1: 0.70, 2: 0.80},
        "zero": {0: 0.50, 1: 0.60, 2: 0.70},
        "frozen": {0: 0.61, 1: 0.70, 2: 0.82, 9: 0.1},
        "plus_zero": {0: 0.60, 1: 0.70, 2: 0.80},
        "plus": {0: 0.59, 1: 0.72, 2: 0.81},
        TRAINED: {0: 0.9},
    }
    names = ("pictures", "sounds", "questions", "audio-visual")
    return {
        arm: {seed: {"right": dict.fromkeys(names, share)} for seed, share in found.items()}
        for arm, found in shares.items()
    }


def test_the_table_pairs_seeds_with_the_placebo() -> None:
    found = differences(results(), "questions")
    assert set(found) == {("frozen", "zero"), ("plus", "plus_zero")}
    own, plus = found["frozen", "zero"], found["plus", "plus_zero"]
    assert own.mean == pytest.approx((0.11 + 0.10 + 0.12) / 3) and own.n == 3
    assert plus.mean == pytest.approx((-0.01 + 0.02 + 0.01) / 3)
    rows = table(results()).splitlines()
    assert rows[2].startswith("| `trained` | 1 | 0.900 |")
    assert "| `frozen` | 4 | 0.557 ± " in table(results())
    assert "| - `zero` | 3 | +0.1100 ± 0.0248 |" in table(results())
    first, second, note = sentences(results())
    assert note.startswith("Intervals are over seeds")
    assert first.startswith("`frozen` answers +0.1100") and first.endswith("than `zero` (3 seeds): it is better.")
    assert "are not shown to differ" in second and f"a gain of {detectable(plus):.3f} would" in second


def test_seeds_that_do_not_differ_show_no_spread() -> None:
    same = {arm: {seed: {"right": {"questions": 0.25}} for seed in (0, 1)} for arm in ("frozen", "zero")}
    told, _ = sentences(same)
    assert told.endswith("than `zero` (2 seeds): every seed answers as many with both.")


def test_recipes_name_kernels_that_there_are(things: Materials) -> None:
    assert {"smolav_small", "smolav_branches"} <= set(recipe_names(PREFIX))
    for name in recipe_names(PREFIX):
        for recipe in (read_recipe(name, PREFIX), read_recipe(name, PREFIX).smoke_version()):
            media = {SOURCE: SIZES, TARGET: dataclasses.replace(SIZES, projector_width=recipe.width)}
            setup = set_up(recipe, "plus", media, things.table)
            shapes = {
                key: abstract_params(lambda s=s: MediaEmbedder(s, rngs=nnx.Rngs(0)))[1] for key, s in media.items()
            }
            assert jax.eval_shape(setup.start, 0, shapes[TARGET], shapes[SOURCE]).adapters


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--arms", "none", "magic"), "There is no arm 'magic'; take one or more of none, mergenet, zero"),
        (("--arms", "kd"), "There is no arm 'kd'"),
        (("--seeds", "1", "1"), "Seeds must be one or more, all different, not (1, 1)"),
        (("--seeds", "-1"), "Seeds must be from 0 to"),
        (("--recipe", "smolav_big"), "There is no recipe 'smolav_big'; take one of smolav_branches, smolav_small"),
        (("--width", "0"), "width must be at least 1, not 0"),
        (("--rate", "nan"), "rate must lie between 0 and 1, not nan"),
        (("--pictures", "4000"), "pictures (4000) are drawn from source_pictures (3000); raise the latter"),
        (("--merge.cycle", "0"), "cycle must be an integer of at least 1, not 0"),
    ],
)
def test_mistakes(more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["--workdir", str(tmp_path), *more]) == 2
    except SystemExit as end:  # what the parser finds by itself
        assert end.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not list(tmp_path.glob("*/seed*.json"))

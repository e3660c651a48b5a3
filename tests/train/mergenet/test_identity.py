"""A run is another run exactly when something that its arm reads is changed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergenet_jax import MergeConfig, Pair
from models.errors import UserError
from train.mergenet.arms import ARMS
from train.mergenet.config import SGD, ModelSpec, read_recipe
from train.mergenet.identity import digest, relevant

PAIR = (Pair("a", "b"),)
CHANGES: dict[str, Any] = {
    "merge": MergeConfig(cycle=5),
    "plus": MergeConfig(cycle=5),
    "pairs": PAIR,
    "self_pairs": PAIR,
    "plus_pairs": PAIR,
    "init_pairs": PAIR,
    "adapter_constant": 3,
    "dkd_warmup": 7,
}
READS = {
    "none": set(),
    "kd": set(),
    "dkd": {"dkd_warmup"},
    "mergenet": {"merge", "pairs", "adapter_constant"},
    "zero": {"merge", "pairs", "adapter_constant"},
    "self": {"merge", "self_pairs", "adapter_constant"},
    "direct": {"merge", "pairs"},
    "start": {"init_pairs"},
    "plus": {"plus", "plus_pairs", "init_pairs", "adapter_constant"},
    "plus_frozen": {"plus", "plus_pairs", "init_pairs", "adapter_constant"},
}
SOURCES = {
    "source": ("zero", "mergenet", "frozen", "kd"),
    "source_sgd": ("mergenet", "frozen", "kd"),
    "source_epochs": ("frozen", "start"),
    "source_pictures": ("frozen", "start"),
}
"""Arms that read what is told of the source, among these five and `none`."""


@pytest.mark.parametrize("arm", READS)
def test_only_what_an_arm_reads_is_of_its_identity(arm: str) -> None:
    recipe = dataclasses.replace(read_recipe("mergenet_cifar10"), arm=arm, plus_pairs=())
    changed = {
        name
        for name, value in CHANGES.items()
        if relevant(dataclasses.replace(recipe, **{name: value})) != relevant(recipe)
    }
    stand_for = {"start": {"pairs", "plus_pairs"}, "plus": {"pairs"}, "plus_frozen": {"pairs"}}
    assert changed == READS[arm] | stand_for.get(arm, set())


def test_what_an_arm_without_a_source_is_told_of_it_is_not_read() -> None:
    changes = {"source": ModelSpec("resnet50"), "source_sgd": SGD(0.7), "source_epochs": 77, "source_pictures": 5}
    for name, value in changes.items():
        for arm in ("none", "zero", "mergenet", "frozen", "kd", "start"):
            recipe = dataclasses.replace(read_recipe("mergenet_cifar10"), arm=arm)
            other = relevant(dataclasses.replace(recipe, **{name: value})) != relevant(recipe)
            assert other == (arm in SOURCES[name] or (arm == "start" and name in ("source", "source_sgd")))


def test_a_digest_is_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        (tmp_path / name).mkdir()
        save_file({"x": np.full(3, i // 2, np.float32)}, tmp_path / name / "model.safetensors")
    first, same, other = (digest(tmp_path / name) for name in "abc")
    assert first == same != other
    with pytest.raises(UserError, match="is no checkpoint"):
        digest(tmp_path)


def test_other_options_are_kept() -> None:
    for name in ("mergenet_cifar10", "mergenet_qa_to_reviews"):
        for arm in ARMS:
            recipe = dataclasses.replace(read_recipe(name), arm=arm)
            own = {field.name for field in dataclasses.fields(recipe)} - set(CHANGES) - set(SOURCES)
            assert all(getattr(relevant(recipe), field) == getattr(recipe, field) for field in own)
    with pytest.raises(UserError, match="There is no arm 'magic'"):
        relevant(dataclasses.replace(read_recipe("mergenet_cifar10"), arm="magic"))

"""The settings that identify a run. Settings its arm ignores are excluded."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, TypeVar

from mergenet_jax import MergeConfig
from models.hf.checkpoint import open_checkpoint
from models.hub.package_index import sha256_of
from train.mergenet.arms import find_arm, init_pairs_of
from train.mergenet.config import Recipe
from train.mergenet.task_config import TaskRecipe

R = TypeVar("R", bound=Recipe | TaskRecipe)


def relevant(recipe: R) -> R:
    """The recipe with defaults for what its arm does not read: of transfers, of distillation, and of the source.

    Raises:
        UserError: if there is no such arm.
    """
    arm = find_arm(recipe.arm)
    begins = arm.starts or (arm.plus and recipe.plus.init_from_source)
    unread: dict[str, tuple[bool, Any]] = {
        "merge": (arm.shares or (arm.transfers and not arm.plus), MergeConfig()),
        "plus": (arm.plus, MergeConfig()),
        "adapter_constant": (arm.transfers, 0),
        "pairs": ((arm.shares or arm.transfers) and not (arm.own or arm.plus), ()),
        "self_pairs": (arm.own, ()),
        "plus_pairs": (arm.plus, ()),
        "init_pairs": (begins, ()),
        "source": (arm.source != "absent", recipe.target),
        "source_epochs": (arm.source == "frozen", 0),
    }
    if isinstance(recipe, Recipe):
        unread["dkd_warmup"] = (arm.distils == "dkd", 0)
        unread["source_pictures"] = (arm.source == "frozen", None)
        unread["source_sgd"] = (arm.source in ("used", "frozen"), recipe.target_sgd)
    named = {"plus_pairs": recipe.plus_pairs or recipe.pairs, "init_pairs": init_pairs_of(recipe)}
    whole = dataclasses.replace(recipe, **named)
    return dataclasses.replace(whole, **{name: empty for name, (read, empty) in unread.items() if not read})


def digest(folder: Path) -> str:
    """A digest of an exported model's weights, the same wherever they lie.

    Raises:
        UserError: if there are none.
    """
    files = {stored.file for stored in open_checkpoint(folder).tensors.values()}
    return hashlib.sha256("".join(sha256_of(file) for file in sorted(files)).encode()).hexdigest()

"""Settings of a run of MergeNet: data, models, pairs of kernels, optimisers; and the recipes by name."""

import dataclasses
import math
import runpy
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import optax

from mergenet_jax import MergeConfig, Pair
from models.errors import UserError
from models.vision.classification import check_stem
from models.vision.classifier import CLASSIFIERS, Classifier
from train.mergenet.augment import Augmentation
from train.mergenet.classification import own_loss
from train.mergenet.data import PICTURE_SETS

CONFIGS = Path(__file__).parents[1] / "configs"
PREFIX = "mergenet_"
WIDEST = 64
"""Largest factor on a classifier's channels."""
CLASSES = {"cifar10": 10, "cifar100": 100}
SOURCE, TARGET = "source", "target"
Direction = Literal["forward", "backward", "both"]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A picture classifier by name.

    Attributes:
        name: one of `models.vision.classifier.CLASSIFIERS`.
        width: factor on its channels.
        stem: "cifar" or "imagenet".
    """

    name: str
    width: float = 1.0
    stem: str = "cifar"

    def __post_init__(self) -> None:
        if self.name not in CLASSIFIERS:
            raise UserError(f"There is no classifier {self.name!r}; take one of {', '.join(CLASSIFIERS)}.")
        if not 0 < self.width <= WIDEST:
            raise UserError(f"A classifier's width must be above 0 and at most {WIDEST}, not {self.width}.")
        check_stem(self.stem)

    def make(self, classes: int) -> Classifier:
        """The classifier for a number of classes."""
        return CLASSIFIERS[self.name](classes, self.stem, width=self.width)


@dataclasses.dataclass(frozen=True)
class SGD:
    """SGD with momentum and a learning rate that falls; the defaults are the authors'.

    Attributes:
        rate: learning rate.
        momentum: of the gradients.
        decay: weight decay, added to the gradient, of all parameters.
        milestones: epochs after which the rate is multiplied by `factor`.
        factor: see there.
        cosine: the rate falls along half a cosine to 0 instead.
        warmup: epochs of linear warm-up.
    """

    rate: float = 0.1
    momentum: float = 0.9
    decay: float = 5e-4
    milestones: tuple[int, ...] = (60, 120, 160)
    factor: float = 0.2
    cosine: bool = False
    warmup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate", "momentum", "decay", "factor", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} of SGD must be a finite number of at least 0, not {getattr(self, name)}.")
        if any(milestone < 1 for milestone in self.milestones):
            raise UserError(f"milestones of SGD must be at least 1, not {self.milestones}.")

    def make(self, epochs: int, steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of so many epochs of so many steps."""
        if self.cosine:
            falling = optax.cosine_decay_schedule(1.0, epochs * steps)
        else:
            falling = optax.piecewise_constant_schedule(1.0, {m * steps: self.factor for m in self.milestones})
        ramp = max(self.warmup * steps, 1.0)

        def rate(count: Any) -> Any:
            return self.rate * falling(count) * optax.linear_schedule(1 / ramp, 1.0, math.ceil(ramp) - 1)(count)

        return optax.chain(optax.add_decayed_weights(self.decay), optax.sgd(rate, momentum=self.momentum))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's result but its arm, its seed and a given source checkpoint.

    Attributes:
        data: one of `train.mergenet.data.PICTURE_SETS`.
        source: the classifier that is read.
        target: the classifier that is written.
        pairs: kernels of the source and of the target.
        self_pairs: kernels of the target and of the target, for the arm "self".
        arm: one of `train.mergenet.arms.ARMS`.
        direction: "backward" exchanges source and target, "both" transfers both ways at once.
        merge: options of the transfer.
        plus: options of the transfer in the arms "plus".
        plus_pairs: kernels of the source and of the target in these arms; none for `pairs`.
        init_pairs: those that start as the source's with `plus.init_from_source`, and in the arm "start"; none for
            `plus_pairs`.
        adapter_constant: epochs before the adapter's learning rate falls along half a cosine to 0.
        epochs: passes over the data.
        batch: pictures of a step.
        train_pictures: how many of the training pictures are used; 0 for all.
        validation_pictures: of the validation pictures.
        test_pictures: of the test pictures.
        augmentation: of the training pictures.
        source_sgd: optimiser of the source.
        target_sgd: of the target.
        source_epochs: of a source that is trained first and then frozen; 0 for as many as `epochs`.
        source_pictures: it is trained on; None for `train_pictures`, 0 for all.
        dkd_warmup: epochs in which DKD's weight grows (its authors: 20 of 240).
        keep: checkpoints kept.
        check_every: steps between looks at whether the losses are finite.
    """

    SMOKE_DATA: ClassVar[str] = "pictures of CIFAR-10"

    data: str
    source: ModelSpec
    target: ModelSpec
    pairs: tuple[Pair, ...]
    self_pairs: tuple[Pair, ...]
    arm: str = "mergenet"
    direction: Direction = "forward"
    merge: MergeConfig = MergeConfig()
    plus: MergeConfig = MergeConfig.plus()
    plus_pairs: tuple[Pair, ...] = ()
    init_pairs: tuple[Pair, ...] = ()
    adapter_constant: int = 4
    epochs: int = 200
    batch: int = 128
    train_pictures: int = 0
    validation_pictures: int = 0
    test_pictures: int = 0
    augmentation: Augmentation = Augmentation()
    source_sgd: SGD = SGD()
    target_sgd: SGD = SGD()
    source_epochs: int = 0
    source_pictures: int | None = None
    dkd_warmup: int = 20
    keep: int = 2
    check_every: int = 50

    def __post_init__(self) -> None:
        if self.data not in PICTURE_SETS:
            raise UserError(f"There are no pictures {self.data!r}; take {' or '.join(PICTURE_SETS)}.")
        for name in ("epochs", "batch", "keep", "check_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        counts = ("train_pictures", "validation_pictures", "test_pictures")
        for name in (*counts, "source_epochs", "dkd_warmup", "adapter_constant"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}.")

    @property
    def classes(self) -> int:
        """Classes of the pictures."""
        return CLASSES[self.data]

    def models(self) -> dict[str, Classifier]:
        """Target and source."""
        return {TARGET: self.target.make(self.classes), SOURCE: self.source.make(self.classes)}

    def loss(self, model: Classifier) -> Any:
        """Loss of one of `models` without distillation."""
        return own_loss(model)

    def optimizers(self, steps: int) -> dict[str, optax.GradientTransformation]:
        """Theirs, of a run with so many steps an epoch."""
        return {
            TARGET: self.target_sgd.make(self.epochs, steps),
            SOURCE: self.source_sgd.make(self.epochs, steps),
        }

    def directed(self) -> Self:
        """The recipe with source and target exchanged, if it goes backward."""
        return exchanged(self, source_sgd=self.target_sgd, target_sgd=self.source_sgd)

    def alone(self) -> Self:
        """The recipe that trains the source alone, as a target."""
        return dataclasses.replace(
            self,
            target=self.source,
            target_sgd=self.source_sgd,
            epochs=self.source_epochs or self.epochs,
            train_pictures=self.train_pictures if self.source_pictures is None else self.source_pictures,
            arm="none",
            direction="forward",
        )

    def smoke_version(self) -> Self:
        """The recipe for a look at whether it runs: CIFAR-10, narrow classifiers, two epochs of 8 batches of 16."""

        def narrow(spec: ModelSpec) -> ModelSpec:
            light = {"resnet50": "resnet18"}.get(spec.name, spec.name)
            return dataclasses.replace(spec, name=light, width=0.125)

        return dataclasses.replace(
            self,
            data="cifar10",
            source=narrow(self.source),
            target=narrow(self.target),
            merge=dataclasses.replace(self.merge, layers=1, rank=min(self.merge.rank, 4)),
            plus=dataclasses.replace(self.plus, layers=1),
            epochs=2,
            source_epochs=1,
            source_pictures=None,
            batch=16,
            train_pictures=128,
            validation_pictures=64,
            test_pictures=64,
        )


def exchanged(recipe: Any, **changes: Any) -> Any:
    """A recipe with source and target exchanged and these changes, if it goes backward."""
    if recipe.direction != "backward":
        return recipe
    pairs = {name: turned(getattr(recipe, name)) for name in ("pairs", "plus_pairs", "init_pairs")}
    ends = {"source": recipe.target, "target": recipe.source, "self_pairs": (), "direction": "forward"}
    return dataclasses.replace(recipe, **ends, **pairs, **changes)


def turned(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """The pairs with source and target exchanged."""
    return tuple(Pair(pair.target, pair.source, pair.target_layout, pair.source_layout) for pair in pairs)


def recipe_names(prefix: str = PREFIX) -> list[str]:
    """Names of all recipes of a kind."""
    return sorted(path.stem for path in CONFIGS.glob(f"{prefix}*.py"))


def read_recipe(name: str, prefix: str = PREFIX) -> Any:
    """The recipe of a name: RECIPE in train/configs/NAME.py.

    Args:
        name: of the recipe.
        prefix: what names of its kind begin with: "mergenet_" (a `Recipe` or `train.mergenet.task_config.TaskRecipe`)
            or "smolav_" (`train.mergenet.av.config.Recipe`).

    Raises:
        UserError: if there is none.
    """
    if name not in (known := recipe_names(prefix)):
        raise UserError(f"There is no recipe {name!r}; take one of {', '.join(known)}.")
    return runpy.run_path(str(CONFIGS / f"{name}.py"))["RECIPE"]

"""The arms of an experiment: MergeNet, its controls, and the baselines."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from mergenet_jax import Learner, LossOutput, MergeConfig, MergeState, Pair, Transfer, init_state, materialise
from mergenet_jax.state import adapter_optimizer
from mergenet_jax.transfer import init_from_source
from models.errors import UserError
from models.layers.init import Params
from models.vision.classifier import Classifier
from train.mergenet.classification import right
from train.mergenet.config import SOURCE, TARGET, Recipe, turned
from train.mergenet.distillation import DISTILLATIONS, DKD, Distillation, cross_entropy
from train.mergenet.sharing import share
from train.mergenet.task_config import TaskRecipe

JOINT = "models"
Given = tuple[Params, Params]
"""Parameters and statistics of a frozen source."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """Settings of an arm.

    Attributes:
        source: "used" is trained beside the target, or frozen if it is given; "frozen" must be given; "idle" is there
            but never trained (no value of it is read); "absent".
        plus: whether the transfer is the recipe's `plus`, in place of its `merge`.
        changes: of the transfer's options.
        transfers: whether there is a transfer.
        own: whether it goes between the target's own layers.
        shares: whether the target's kernels are overwritten with the source's, see `share`.
        starts: whether kernels start as the source's, see `init_pairs_of`, without any transfer later.
        distils: name of the distillation.
        controls: arms that differ from this one only in what they know of the source.
    """

    source: Literal["used", "frozen", "idle", "absent"] = "used"
    plus: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    transfers: bool = False
    own: bool = False
    shares: bool = False
    starts: bool = False
    distils: str | None = None
    controls: tuple[str, ...] = ()


ARMS: dict[str, Arm] = {
    "none": Arm("absent"),
    "mergenet": Arm(transfers=True, controls=("zero", "random")),
    "zero": Arm("idle", transfers=True, changes={"source": "zero"}),
    "random": Arm(transfers=True, changes={"source": "random"}),
    "self": Arm("absent", transfers=True, own=True),
    "frozen": Arm("frozen", transfers=True, controls=("zero", "random")),
    "direct": Arm(shares=True),
    "start": Arm("frozen", starts=True, controls=("none",)),
    **{name: Arm(distils=name) for name in DISTILLATIONS},
    "plus": Arm(transfers=True, plus=True, controls=("plus_zero", "plus_random")),
    "plus_zero": Arm("idle", transfers=True, plus=True, changes={"source": "zero"}),
    "plus_random": Arm(transfers=True, plus=True, changes={"source": "random"}),
    # Beside the placebos, what the copy at the start does without the transfers.
    "plus_frozen": Arm("frozen", transfers=True, plus=True, controls=("plus_zero", "plus_random", "start")),
}


def find_arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        UserError: if there is none.
    """
    if name not in ARMS:
        raise UserError(f"There is no arm {name!r}; take one of {', '.join(ARMS)}.")
    return ARMS[name]


@dataclasses.dataclass(frozen=True)
class Setup:
    """An arm made ready.

    Attributes:
        learners: as `mergenet_jax` takes them.
        transfers: as `mergenet_jax` takes them.
        trained: the models that are trained, by name, the target first.
        share: what happens to the state before a step.
        start: the state of a seed, and of the frozen source.
        given: the frozen source, if any.
    """

    learners: dict[str, Learner | None]
    transfers: tuple[Transfer, ...]
    trained: dict[str, Any]
    share: Callable[[MergeState], MergeState]
    start: Callable[[Any, Given | None], MergeState]
    given: Given | None

    def weights(self, state: MergeState) -> dict[str, Given]:
        """Parameters, as the models know them, and statistics of all models that are trained."""
        if JOINT in state.models:
            both = state.models[JOINT]
            return {name: (both.params[name], both.state[name]) for name in self.trained}
        found = {name: state.models[name] for name in self.trained}
        return {name: (materialise(model.params), model.state) for name, model in found.items()}

    def by_name(self, metrics: Mapping[str, Any]) -> dict[str, dict[str, Array]]:
        """Metrics of a step by model and transfer."""
        rest = {name: values for name, values in metrics.items() if name != JOINT}
        if JOINT in metrics:
            rest |= {name: metrics[JOINT][name] for name in self.trained}
        return rest


def set_up(recipe: Recipe | TaskRecipe, steps: int, given: Given | None = None) -> Setup:
    """Prepares an arm.

    Args:
        recipe: the run's recipe, with a direction that is not "backward" (`Recipe.directed`).
        steps: of an epoch.
        given: the frozen source, if any.

    Raises:
        UserError: if there is no such arm, it needs a source that is not given, or cannot go the recipe's way.
    """
    name = recipe.arm
    arm = find_arm(name)
    if arm.source == "frozen" and given is None:
        raise UserError(f"The arm {name} needs a trained source; give one with --source-checkpoint.")
    if arm.source in ("absent", "idle") and given is not None:
        raise UserError(f"The arm {name} does not read a source; leave --source-checkpoint out.")
    check_direction(recipe, given)
    made: dict[str, Any] = recipe.models()
    optimizers = recipe.optimizers(steps)
    trained = {TARGET: made[TARGET]} | ({SOURCE: made[SOURCE]} if arm.source == "used" and given is None else {})
    read = given or arm.source == "idle"
    transfers = _transfers(recipe, arm, steps, fresh=SOURCE in trained) if arm.transfers else ()
    if arm.distils:
        if isinstance(recipe, TaskRecipe):
            raise UserError(f"The arm {name} needs two classifiers of the same pictures; name another --arm.")
        distillation = DKD(warmup=recipe.dkd_warmup) if arm.distils == "dkd" else DISTILLATIONS[arm.distils]()
        loss = joint_loss(made, distillation, frozen=given is not None)
        learners: dict[str, Learner | None] = {JOINT: Learner(loss, _each(optimizers, trained))}
    else:
        learners = {key: Learner(recipe.loss(model), optimizers[key]) for key, model in trained.items()}
        learners |= {SOURCE: None} if read else {}

    copied = MergeConfig(init_from_source=True)
    starting = [Transfer(*way, copied) for way in _ways(recipe, init_pairs_of(recipe))] if arm.starts else []

    def start(seed: Any, given: Given | None) -> MergeState:
        root = jax.random.key(seed)
        fresh = {key: made[key].init(jax.random.fold_in(root, i)) for i, key in enumerate((TARGET, SOURCE))}
        if given is not None:
            fresh[SOURCE] = given
        params, stats = ({key: parts[i] for key, parts in fresh.items()} for i in range(2))
        for transfer in starting:
            params[transfer.target] = init_from_source(transfer, params, params[transfer.target], root)
        if arm.distils:
            rest = stats if given is None else {TARGET: stats[TARGET], SOURCE: fresh[SOURCE]}
            whole, states = {JOINT: {key: params[key] for key in trained}}, {JOINT: rest}
        else:
            whole, states = {key: params[key] for key in learners}, {key: stats[key] for key in learners}
        return init_state(learners, transfers, whole, jax.random.fold_in(root, 2), states=states)

    sharing = _ways(recipe, recipe.pairs) if arm.shares else ()
    return Setup(learners, transfers, trained, lambda s: share(s, sharing, recipe.merge.cycle), start, given)


def _pairs(recipe: Recipe | TaskRecipe, arm: Arm) -> tuple[Pair, ...]:
    return (recipe.plus_pairs or recipe.pairs) if arm.plus else recipe.pairs


def init_pairs_of(recipe: Recipe | TaskRecipe) -> tuple[Pair, ...]:
    """The kernels that begin as the source's in the arms that copy any."""
    return recipe.init_pairs or recipe.plus_pairs or recipe.pairs


def _ways(recipe: Recipe | TaskRecipe, pairs: tuple[Pair, ...]) -> tuple[tuple[str, str, tuple[Pair, ...]], ...]:
    """Source, target and pairs of each way that knowledge goes."""
    way = ((SOURCE, TARGET, pairs),)
    return (*way, (TARGET, SOURCE, turned(pairs))) if recipe.direction == "both" else way


def check_direction(recipe: Recipe | TaskRecipe, given: Any | None) -> None:
    """Checks that an arm can go the recipe's way; `given` is the frozen source, if any.

    Raises:
        UserError: if it goes one way only.
    """
    arm = find_arm(recipe.arm)
    if recipe.direction == "both" and (arm.own or arm.distils or arm.source != "used" or given is not None):
        raise UserError(
            f"The arm {recipe.arm} goes one way only, or its source is not trained; name another --direction."
        )


def _transfers(recipe: Recipe | TaskRecipe, arm: Arm, steps: int, *, fresh: bool) -> tuple[Transfer, ...]:
    config = dataclasses.replace(recipe.plus if arm.plus else recipe.merge, **arm.changes)
    if fresh:  # a source that knows nothing yet is nothing to begin with
        config = dataclasses.replace(config, init_from_source=False)
    if arm.own and not recipe.self_pairs:
        raise UserError("The recipe names no pairs of the target's own kernels; give self_pairs, or another --arm.")
    begins = recipe.init_pairs if config.init_from_source else ()
    ways, starts = _ways(recipe, _pairs(recipe, arm)), _ways(recipe, begins)
    if arm.own:
        ways, starts = ((TARGET, TARGET, recipe.self_pairs),), ((TARGET, TARGET, ()),)
    made = [Transfer(*way, config, init_pairs=start[2]) for way, start in zip(ways, starts, strict=True)]
    # The adapter learns once in so many steps.
    constant, whole = ((count * steps) // config.cycle for count in (recipe.adapter_constant, recipe.epochs))
    return tuple(falling(transfer, constant, whole) for transfer in made)


def falling(transfer: Transfer, constant: int, whole: int) -> Transfer:
    """The transfer whose adapter has an AdamW with a rate that is constant, then falls along half a cosine to 0.

    AdamW's update, decay included, is proportional to its rate, so that the schedule can follow it.

    Args:
        transfer: which.
        constant: updates of the adapter before its rate falls.
        whole: all its updates.
    """
    shape = optax.join_schedules(
        [optax.constant_schedule(1.0), optax.cosine_decay_schedule(1.0, max(whole - constant, 1))], [constant]
    )
    optimizer = optax.chain(adapter_optimizer(transfer), optax.scale_by_schedule(shape))
    return dataclasses.replace(transfer, optimizer=optimizer)


def joint_loss(classifiers: Mapping[str, Classifier], distillation: Distillation, *, frozen: bool) -> Any:
    """Loss of the target that distils the source, and of the source alone, unless that is frozen.

    A source that is trained is distilled as it answers in training, with the batch's statistics; a frozen one lies in
    the state and answers with its running statistics. Nothing flows from the target's loss into the source.
    """
    source, target = classifiers[SOURCE], classifiers[TARGET]

    def loss(params: Params, state: Params, batch: Any, key: Array) -> tuple[Array, LossOutput]:
        del key
        images, labels = batch["images"], batch["labels"]
        after, found = dict(state), {}
        if frozen:
            teacher, _ = source.apply(state[SOURCE][0], state[SOURCE][1], images, train=False)
            total = jnp.zeros(())
        else:
            teacher, after[SOURCE] = source.apply(params[SOURCE], state[SOURCE], images, train=True)
            total = cross_entropy(teacher.logits, labels)
            found[SOURCE] = {"loss": total, "top1": right(teacher, batch)}
        student, after[TARGET] = target.apply(params[TARGET], state[TARGET], images, train=True)
        own = distillation(student, teacher, labels, batch["epoch"])
        found[TARGET] = {"loss": own, "top1": right(student, batch)}
        return total + own, LossOutput(after, found)

    return loss


def _each(optimizers: Mapping[str, optax.GradientTransformation], names: Mapping[str, Any]) -> Any:
    """An optimiser of a dict of models, each with its own."""
    return optax.partition(
        {name: optimizers[name] for name in names},
        lambda params: {name: jax.tree.map(lambda _, n=name: n, part) for name, part in params.items()},
    )

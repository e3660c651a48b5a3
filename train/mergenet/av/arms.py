"""An arm made ready: who learns, what is transferred, and the compiled step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mergenet_jax import Learner, LossOutput, MergeConfig, MergeState, Transfer, init_state, train_step
from mergenet_jax.transfer import init_from_source
from models.layers.init import Params, abstract_params
from models.smolav.config import SmolAVConfig
from models.smolav.modeling import MediaEmbedder
from train.mergenet.arms import SOURCE, TARGET, falling
from train.mergenet.av.config import Recipe, find_arm
from train.mergenet.sharing import share
from train.smolav.align import Batch, alignment_loss, alignment_optimizer


@dataclasses.dataclass(frozen=True)
class Setup:
    """See the module.

    Attributes:
        learners: as `mergenet_jax` takes them.
        transfers: as `mergenet_jax` takes them.
        start: (seed, target's parameters, source's) -> state; to be compiled, as the state holds the parameters as
            they are, and a step donates it.
        step: (state, batches by name) -> (state, metrics); the state is donated.
    """

    learners: dict[str, Learner | None]
    transfers: tuple[Transfer, ...]
    start: Callable[[Any, Params, Params], MergeState]
    step: Callable[[MergeState, dict[str, Batch]], tuple[MergeState, dict[str, Any]]]


def set_up(recipe: Recipe, name: str, sizes: dict[str, SmolAVConfig], table: Float[np.ndarray, "W D"]) -> Setup:
    """Prepares an arm; the names mean what they do for pictures (`train.mergenet.arms.ARMS`).

    Args:
        recipe: of the experiment.
        name: of the arm.
        sizes: of source and target.
        table: embeddings of the words.

    Raises:
        UserError: if there is no such arm.
    """
    arm = find_arm(name)

    def learner(key: str, rate: float) -> Learner:
        graph, _ = abstract_params(lambda: MediaEmbedder(sizes[key], rngs=nnx.Rngs(0)))

        def loss(params: Params, state: None, batch: Batch, key: Array) -> tuple[Array, LossOutput]:
            del state, key
            value, right = alignment_loss(graph, table, params, batch)
            return value, LossOutput(None, right)

        return Learner(loss, alignment_optimizer(rate, recipe.steps))

    learners: dict[str, Learner | None] = {TARGET: learner(TARGET, recipe.rate)}
    if arm.source != "absent":
        learners[SOURCE] = learner(SOURCE, recipe.source_rate) if learns(name) else None
    config = dataclasses.replace(recipe.plus if arm.plus else recipe.merge, **arm.changes)
    begins = recipe.init_pairs if config.init_from_source else ()
    transfer = Transfer(SOURCE, TARGET, recipe.pairs, config, init_pairs=begins)
    transfers = (falling(transfer, 0, -(-recipe.steps // config.cycle)),) if arm.transfers else ()
    ways = ((SOURCE, TARGET, recipe.init_pairs),) if arm.shares else ()
    copied = Transfer(SOURCE, TARGET, recipe.init_pairs, MergeConfig(init_from_source=True))

    def start(seed: Any, target: Params, source: Params) -> MergeState:
        params, root = {TARGET: target, SOURCE: source}, jax.random.key(seed)
        if arm.starts:
            params[TARGET] = init_from_source(copied, params, target, root)
        return init_state(learners, transfers, {key: params[key] for key in learners}, root)

    train = train_step(learners, transfers)

    def step(state: MergeState, batches: dict[str, Batch]) -> tuple[MergeState, dict[str, Any]]:
        return train(share(state, ways, config.cycle), batches)

    return Setup(learners, transfers, start, jax.jit(step, donate_argnums=0))


def learns(name: str) -> bool:
    """Whether the source of an arm keeps learning: not if a control takes its place."""
    arm = find_arm(name)
    return arm.source == "used" and not arm.changes

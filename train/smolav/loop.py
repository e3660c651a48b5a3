"""The training loop: batches in, steps, logs, validation, checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models.devices import is_first
from models.layers.init import Params
from models.placement import divided
from models.smolav.params import trained_shapes
from train.checkpoint import check, finish, finishing, manager, restore, save
from train.log import COLUMNS, MetricsLog, plot_metrics
from train.preemption import preemption, stopped
from train.smolav.batches import Batch, BatchMaker
from train.smolav.config import TrainConfig
from train.smolav.losses import METRICS, Metrics, answer_loss
from train.smolav.optimizer import optimizer


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        config: the run's configuration.
        graph: graph definition of the media embedder.
        frozen: the language model's parameters as `language_model.freeze` gives them.
        batches: makes training batches.
        validation: per bucket the same batches every time.
        workdir: folder for checkpoints, metrics and the plot.
        log: prints a line.
    """

    config: TrainConfig
    graph: nnx.GraphDef
    frozen: Params
    batches: BatchMaker
    validation: dict[str, list[Batch]]
    workdir: Path
    log: Callable[[str], None] = print


def make_step(config: TrainConfig, graph: nnx.GraphDef, tx: optax.GradientTransformation) -> Callable:
    """A jitted `(state, frozen, batch) -> (state, metrics)`; the state is donated."""

    def step(state: Params, frozen: Params, batch: Batch) -> tuple[Params, dict[str, jax.Array]]:
        def loss(trained: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            return answer_loss(config.model, graph, trained, frozen, batch)

        gradient, metrics = jax.grad(loss, has_aux=True)(state["trained"])
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to integer step counts
            updates, optimizer_state = tx.update(gradient, state["optimizer"], state["trained"])
        return {"trained": optax.apply_updates(state["trained"], updates), "optimizer": optimizer_state}, metrics

    return jax.jit(step, donate_argnums=0)


def make_evaluate(config: TrainConfig, graph: nnx.GraphDef) -> Callable:
    """A jitted `(trained, frozen, batch) -> metrics`."""
    return jax.jit(lambda trained, frozen, batch: answer_loss(config.model, graph, trained, frozen, batch)[1])


def validate(evaluate: Callable, trained: Params, frozen: Params, batches: list[Batch]) -> dict[str, float]:
    """The metrics over validation batches."""
    return shares(jax.tree.map(lambda *parts: sum(parts), *[evaluate(trained, frozen, batch) for batch in batches]))


def shares(metrics: Metrics) -> dict[str, float]:
    """The metrics as numbers, without those that nothing counted for."""
    sums = {name: np.asarray(metrics[name]) for name in METRICS}
    return {name: round(float(total / count), 5) for name, (total, count) in sums.items() if count > 0}


def fresh_state(config: TrainConfig, trained: Params) -> Params:
    """The state before the first step."""
    trained = jax.tree.map(jnp.asarray, trained)
    return {"trained": trained, "optimizer": optimizer(config, trained).init(trained)}


def train(run: Run, trained: Callable[[], Params], stop_at: int | None = None, *, skip_damaged: bool = False) -> Params:
    """Trains from the newest checkpoint, or from the start, to the last step.

    SIGTERM ends the process after the running step, with a checkpoint and exit status 143.

    Args:
        run: what to work with.
        trained: makes the initial parameters; called only where no checkpoint is found.
        stop_at: stops after so many steps of the whole run, with a checkpoint.
        skip_damaged: moves damaged checkpoints away and resumes at the newest whole one.

    Returns:
        The trained parameters.

    Raises:
        UserError: if the newest checkpoint is damaged or of another run, or the run's folder cannot be written.
    """
    config, last = run.config, min(run.config.steps, stop_at or run.config.steps)
    checkpoints = manager(run.workdir / "checkpoints", config.keep)
    like = jax.eval_shape(lambda parts: fresh_state(config, parts), trained_shapes(config.model))
    found = restore(checkpoints, like, config.identity(), skip_damaged=skip_damaged)
    if found is None:
        start, state = 0, fresh_state(config, trained())
    else:
        start, state = found
        run.log(f"resumed at step {start}")
    columns = [*COLUMNS[:3], *METRICS, COLUMNS[-1]]
    rows = MetricsLog(run.workdir / "metrics.csv", start, columns) if is_first() else None
    step_fn = make_step(config, run.graph, optimizer(config, state["trained"]))
    evaluate = make_evaluate(config, run.graph)
    tokens, clock = 0, time.perf_counter()
    with finishing(checkpoints), preemption() as preempted:
        for step, batch in _numbered(run.batches, start, last):
            stage = config.stage_at(step)
            state, metrics = step_fn(state, run.frozen, divided(batch))
            tokens += int(np.sum(batch["segment"] >= 0))
            done = step + 1
            if rows is not None and done % config.log_every == 0:
                values = shares(metrics)
                speed = round(tokens / (time.perf_counter() - clock))
                rows.write(step=done, stage=stage.name, kind="train", tokens_per_second=speed, **values)
                run.log(f"step {done} {stage.name} {_shown(values)} {speed} tokens/s")
                tokens, clock = 0, time.perf_counter()
            if done % config.validate_every == 0 or done == last:
                values = validate(evaluate, state["trained"], run.frozen, run.validation[stage.validate])
                if rows is not None:
                    rows.write(step=done, stage=stage.name, kind="validation", **values)
                run.log(f"step {done} {stage.name} validation {_shown(values)}")
                clock = time.perf_counter()
            check(checkpoints)
            if preempted(done) and done < last:
                save(checkpoints, done, state, config.identity())
                finish(checkpoints)
                raise stopped(f"after step {done}, which is saved")
            if done % config.save_every == 0 or done == last:
                if rows is not None:
                    plot_metrics(rows.path, run.workdir / "metrics.png")
                save(checkpoints, done, state, config.identity())
    checkpoints.close()
    return state["trained"]


def _shown(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())


def _numbered(batches: BatchMaker, start: int, last: int) -> Iterator[tuple[int, Batch]]:
    return zip(range(start, last), batches.stream(start), strict=False)

"""Measures what MergeNet adds to joint training: ``python -m eval.perf.mergenet [options]``.

A step that trains two classifiers at once is timed without and with a transfer in every `--cycle`-th step, in turns.
With `--topology` nothing is run: both steps are compiled ahead of time for devices that need not be there, and what the
compiler says of a device's memory and work is printed.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

import mergenet_jax as mn
from eval.perf.aot_report import fits, gib, readable, scaled
from eval.perf.compiled import Compiled, compiled
from eval.perf.timing import in_turns
from eval.perf.topologies import Topology, find_topology
from models import command
from models.devices import make_mesh
from models.errors import UserError
from models.vision.classifier import CLASSIFIERS
from train.mergenet.classification import own_loss
from train.mergenet.config import SOURCE, TARGET, WIDEST

SIDE = 32
"""Of a picture, in pixels."""
MOST_CLASSES = 1_000_000
STEPS = {
    "without": "of a program without transfers",
    "transferring": "that transfers",
    "between": "between two that transfer",
    "with": "mean with transfers",
}
"""Kinds of timed steps."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures what a transfer adds to the joint step of two classifiers."""

    source: str = "resnet50"
    """Classifier that is read: resnet18, resnet50, mobilenet_v2 or efficientnet_lite0, with its CIFAR stem."""
    target: str = "mobilenet_v2"
    """Classifier that is written."""
    source_path: str = "classifier/kernel"
    """Kernel that is read."""
    target_path: str = "blocks/15/project/conv/kernel"
    """Kernel that is written."""
    width: float = 1.0
    """Of both networks, relative."""
    classes: int = 100
    """Of both networks."""
    batch: int = 128
    """Pictures of each network's batch."""
    preset: str = "authors_code"
    """Of the transfer: authors_code, paper or plus."""
    cycle: int = 2
    """T_cycle: a transfer in every cycle-th step."""
    steps: int = 20
    """Timed steps with transfers, in turns with steps without: the fastest of each kind counts."""
    topology: str | None = None
    """Compile for TPU chips such as v5e:2x4 (needs libtpu) or cpu:8 instead of timing."""
    mesh: str | None = None
    """With --topology: sizes of data, fsdp and tensor, like data=2,fsdp=4. Default: all data."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """Joint training of two classifiers.

    Attributes:
        learners: of both.
        transfers: one, or none.
        init: makes the state of a key.
    """

    learners: dict[str, mn.Learner]
    transfers: tuple[mn.Transfer, ...]
    init: Callable[[jax.Array], mn.MergeState]


def set_up(options: Options, *, transfer: bool) -> Setup:
    """Prepares joint training with or without the transfer.

    Raises:
        UserError: on any mistake in the options.
    """
    for name in (options.source, options.target):
        if name not in CLASSIFIERS:
            raise UserError(f"There is no classifier {name!r}; choose one of {', '.join(CLASSIFIERS)}.")
    if options.preset not in mn.PRESETS:
        raise UserError(f"There is no preset {options.preset!r}; choose one of {', '.join(mn.PRESETS)}.")
    if not (0 < options.width <= WIDEST and options.classes <= MOST_CLASSES):
        raise UserError(f"--width must be above 0 and at most {WIDEST}, --classes at most {MOST_CLASSES}.")
    if min(options.cycle, options.classes) < 1 or options.batch < 2 or options.steps < options.cycle:
        raise UserError("--cycle and --classes must be at least 1, --batch at least 2, and --steps at least --cycle.")
    models = {
        SOURCE: CLASSIFIERS[options.source](options.classes, "cifar", options.width),
        TARGET: CLASSIFIERS[options.target](options.classes, "cifar", options.width),
    }
    sgd = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))
    learners = {name: mn.Learner(own_loss(model), sgd) for name, model in models.items()}
    pairs = (mn.Pair(options.source_path, options.target_path),)
    config = mn.PRESETS[options.preset](cycle=options.cycle)
    transfers = (mn.Transfer(SOURCE, TARGET, pairs, config),) if transfer else ()

    def init(key: jax.Array) -> mn.MergeState:
        made = {name: model.init(jax.random.fold_in(key, i)) for i, (name, model) in enumerate(models.items())}
        params, states = ({name: each[part] for name, each in made.items()} for part in (0, 1))
        return mn.init_state(learners, transfers, params, key, states=states)

    try:
        jax.eval_shape(init, jax.random.key(0))
    except ValueError as error:
        raise UserError(str(error)) from error
    return Setup(learners, transfers, init)


def batches(options: Options, array: Callable[[tuple[int, ...], Any], Any]) -> dict[str, Any]:
    """One for each network, of arrays made from shapes and types."""
    pictures = (options.batch, SIDE, SIDE, 3)
    return {
        name: {"images": array(pictures, jnp.float32), "labels": array((options.batch,), jnp.int32)}
        for name in (SOURCE, TARGET)
    }


def stepper(options: Options, *, transfer: bool) -> Callable[[int], Any]:
    """A function that runs so many steps, from where it stopped before."""
    setup = set_up(options, transfer=transfer)
    step = mn.make_train_step(setup.learners, setup.transfers)
    data, state = batches(options, jnp.zeros), jax.jit(setup.init)(jax.random.key(0))

    def run(steps: int) -> Any:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, data)
        return metrics, state.step

    return run


def program(options: Options, mesh: Mesh, *, transfer: bool) -> Compiled:
    """The step, compiled for a mesh."""
    setup = set_up(options, transfer=transfer)
    shapes = jax.eval_shape(setup.init, jax.random.key(0))
    shardings = mn.state_shardings(mesh, shapes)
    rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    number = math.prod(mesh.shape[axis] for axis in rows)
    if options.batch % number:
        raise UserError(f"--batch {options.batch} cannot be divided over {number} shards of rows; give a multiple.")
    sharding = NamedSharding(mesh, PartitionSpec(rows))
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    data = batches(options, functools.partial(jax.ShapeDtypeStruct, sharding=sharding))
    step: Any = mn.make_train_step(setup.learners, setup.transfers, shardings=shardings)
    return compiled(step.lower(state, data))


def measured(options: Options) -> tuple[dict[str, Any], Table]:
    """Times of the steps, as numbers and for people.

    A program with a transfer may run the rest of its step, too, at another speed than one without, if the compiler puts
    arrays elsewhere; so the steps that transfer are compared with those between them as well.
    """
    alone, joint, between = stepper(options, transfer=False), stepper(options, transfer=True), options.cycle - 1
    runs = {"without": lambda: alone(1), "transferring": lambda: joint(1)}
    if between:
        runs["between"] = lambda: joint(between)
    _, found = in_turns(runs, options.steps // options.cycle)
    if between:
        found["between"] /= between
    found["with"] = (found["transferring"] + between * found.get("between", 0.0)) / options.cycle
    rest = {name: found[name] for name in ("without", "between") if name in found}
    added = {name: found["with"] / seconds - 1 for name, seconds in rest.items()}

    shown = Table(title=f"{title(options)}; {(device := jax.devices()[0].device_kind)}")
    for name in ("step", "ms", "mean over it"):
        shown.add_column(name, justify="left" if name == "step" else "right")
    for name, words in STEPS.items():
        if name in found:
            shown.add_row(words, f"{found[name] * 1e3:.1f}", f"{added[name]:+.1%}" if name in added else "")
    return {"device": device} | found | {"overhead": added["without"], "work": added.get("between")}, shown


def planned(options: Options, topology: Topology) -> tuple[dict[str, Any], Table]:
    """The compiler's account of both steps, as numbers and for people."""
    mesh = make_mesh(topology.devices, options.mesh, 1, topology.name)
    programs = {name: program(options, mesh, transfer=name == "with") for name in ("without", "with")}
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    memory = "" if topology.memory is None else f" with {gib(topology.memory)} GiB for programs"
    shown = Table(
        title=f"{title(options)}\n{topology.name}: {len(topology.devices)} x {topology.kind}{memory}, mesh {axes}; "
        "GiB per device, a transfer's work included in TFLOP",
    )
    shown.add_column("step")
    for name in ("args", "temps", "needs", "TFLOP"):
        shown.add_column(name, justify="right")
    for name in ("fits", "collectives", "s"):
        shown.add_column(name)
    for name, result in programs.items():
        shown.add_row(
            "without transfer" if name == "without" else name,
            *(gib(size) for size in (result.arguments, result.temporaries, result.needs)),
            scaled(result.flops, 1e12),
            fits(result, topology.memory),
            "\n".join(f"{moved.number} {moved.kind}, {readable(moved.largest)}" for moved in result.moved),
            f"{result.seconds:.0f}",
        )
    about = {"mesh": dict(mesh.shape), "device": topology.kind, "memory": topology.memory}
    return about | {name: dataclasses.asdict(result) for name, result in programs.items()}, shown


def title(options: Options) -> str:
    """A title of the measurement."""
    return (
        f"{options.source} {options.source_path} -> {options.target} {options.target_path}, width {options.width:g}, "
        f"{options.preset}, batch {options.batch}, T_cycle {options.cycle}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.mergenet", description=__doc__)
    if options.topology is not None:
        jax.config.update("jax_platforms", "cpu")
    return command.run(lambda: run(options))


def run(options: Options) -> None:
    """Measures and prints.

    Raises:
        UserError: on any mistake in the options.
    """
    if options.mesh is not None and options.topology is None:
        raise UserError("--mesh is for --topology; leave it out to time the step on one device.")
    # A topology comes before any array is made, which fixes the number of CPU devices.
    topology = None if options.topology is None else find_topology(options.topology)
    set_up(options, transfer=True)  # reports mistakes before anything is compiled
    found, shown = measured(options) if topology is None else planned(options, topology)
    if options.json:
        given = {name: value for name, value in dataclasses.asdict(options).items() if name != "json"}
        print(json.dumps(given | found))
    else:
        Console(width=140).print(shown)


if __name__ == "__main__":
    sys.exit(main())

"""Which batch fits on which chips, with and without pruning: ``python -m eval.perf.planning [options]``.

For every model, topology, context, policy and budget the largest batch is found by compiling (`eval.perf.largest`) for
chips that need not be there, without any weights. Rows go to a file as they are found; the same command continues it.
All numbers are the compiler's estimates. ``python -m eval.perf.aot`` shows one of these configurations in detail.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import tyro
from rich.console import Console

from acckv_jax import CachePolicy
from eval.perf.aot_report import GIB, gib
from eval.perf.largest import Largest, largest_batch
from eval.perf.plan import FULL, Plan, device_bytes, find_preset, planned, policies_for
from eval.perf.topologies import find_topology
from models import command
from models.errors import UserError
from models.files import write_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Finds the largest batch for devices that need not be there, and prints a table in Markdown."""

    models: tuple[str, ...] = ("qwen2_5_omni_7b",)
    """qwen2_5_omni_7b, qwen2_5_omni_3b, videollama2_1_7b_av, smolav."""
    topologies: tuple[str, ...] = ("v5e:4x4", "v5e:8x8", "v5p:2x2x2", "v6e:4x4")
    """TPU chips (needs libtpu), or cpu:8 for 8 virtual CPU devices with --memory."""
    mesh: str | None = None
    """Sizes of data, fsdp and tensor, like data=4,tensor=4. Default: tensor as far as KV heads go, the rest data."""
    contexts: tuple[int, ...] = (8192, 20480, 28672)
    """Prompt tokens of a row."""
    policies: tuple[str, ...] = ("acckv_plus",)
    """Policies to compare with the full cache, which is always among them."""
    budgets: tuple[float, ...] = (0.2, 0.1)
    """Fractions of the prompt that they keep."""
    steps: int = 64
    """Tokens to decode, for which the cache has room."""
    memory: float | None = None
    """GiB of a device that programs may use. Default: what libtpu allows on such a chip."""
    out: Path = Path("planning.json")
    """File of the rows, continued if it is there."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a row is about.

    Attributes:
        model: a key of `eval.perf.plan.PRESETS`.
        topology: the devices.
        mesh: sizes of its axes, as typed.
        context: prompt tokens of a row.
        policy: its name.
        budget: fraction of the prompt that it keeps.
        steps: tokens to decode.
        memory: bytes of a device that programs may use.
    """

    model: str
    topology: str
    mesh: str
    context: int
    policy: str
    budget: float
    steps: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Row:
    """The largest batch of a case.

    Attributes:
        case: what it is about.
        weights: bytes per device of the decoder's weights.
        towers: bytes per device of the other weights.
        largest: what fits.
        jax: version that compiled it.
    """

    case: Case
    weights: int
    towers: int
    largest: Largest
    jax: str


def cases(options: Options) -> Iterator[tuple[Case, Plan, CachePolicy]]:
    """Everything that is asked for.

    Raises:
        UserError: on any mistake in the options.
    """
    for model in options.models:
        for name in options.topologies:
            topology = find_topology(name)
            memory = topology.memory if options.memory is None else int(options.memory * GIB)
            if memory is None:
                raise UserError(f"The memory of {name} is not known; give --memory in GiB.")
            plan = planned(model, topology, options.mesh, min(options.contexts), options.steps)
            mesh = ",".join(f"{axis}={size}" for axis, size in plan.mesh.shape.items())
            for context in options.contexts:
                find_preset(model, context, options.steps)
                policies = [("full", FULL)]
                for budget in options.budgets:
                    names = [each for each in options.policies if each != "full"]
                    policies += policies_for(plan.preset, context, names, budget).items()
                for policy_name, policy in policies:
                    about = (model, name, mesh, context, policy_name, float(policy.budget), options.steps, memory)
                    yield Case(*about), dataclasses.replace(plan, context=context), policy


def rows_of(options: Options, known: Sequence[Row]) -> Iterator[Row]:
    """The rows that are not known yet, each as soon as it is found.

    Raises:
        UserError: on any mistake in the options.
    """
    done = {row.case for row in known}
    for case, plan, policy in list(cases(options)):  # mistakes are found before the first program is compiled
        if case not in done:
            done.add(case)
            found = largest_batch(plan, case.memory, policy)
            yield Row(case, device_bytes(plan.params), plan.towers, found, jax.__version__)
            jax.clear_caches()


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; none if it is not there.

    Raises:
        UserError: if it holds something else.
    """
    try:
        rows = json.loads(path.read_text())
        if not isinstance(rows, list):
            raise TypeError
        return [Row(**row | {"case": Case(**row["case"]), "largest": Largest(**row["largest"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} holds no rows of eval.perf.planning; name another file.") from error


def markdown(rows: Sequence[Row]) -> str:
    """A table for each model, in the order of the rows."""
    lines: list[str] = []
    for model in dict.fromkeys(row.case.model for row in rows):
        own = [row for row in rows if row.case.model == model]
        full = {(*_place(row),): row.largest.batch for row in own if row.case.policy == "full"}
        lines += [
            f"## {model}",
            "",
            "| chips | mesh | tokens | policy | weights + towers GiB | prefill GiB | cache MiB of a row | decode GiB |"
            " largest batch | to full | limit |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in own:
            case, found, whole = row.case, row.largest, full.get(_place(row))
            policy = "full" if case.policy == "full" else f"{case.policy} {case.budget:g}"
            cells = [
                case.topology,
                case.mesh,
                f"{case.context:,}",
                policy,
                f"{gib(row.weights)} + {gib(row.towers)}",
                gib(found.prefill),
                f"{found.row / 2**20:,.1f}",
                gib(found.decode),
                f"{found.batch:,}",
                f"{found.batch / whole:.1f}" if whole else "",
                found.limit,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _place(row: Row) -> tuple[str, str, int, int]:
    return row.case.topology, row.case.mesh, row.case.context, row.case.memory


def run(options: Options) -> None:
    """Compiles what the file does not hold yet, and prints all of it.

    Raises:
        UserError: on any mistake in the options.
    """
    if not options.models or not options.topologies or not options.contexts:
        raise UserError("--models, --topologies and --contexts need at least one value each.")
    command.check_output(options.out)
    rows, progress = read_rows(options.out), Console(stderr=True)
    for row in rows_of(options, rows):
        rows.append(row)
        write_text(options.out, json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
        case, found = row.case, row.largest
        progress.print(
            f"{case.model}, {case.topology}, {case.context:,} tokens, {case.policy} {case.budget:g}: {found.batch:,} "
            f"rows ({found.compiled} programs, {found.seconds:.0f} s)",
            soft_wrap=True,
            highlight=False,
        )
    print(markdown(rows))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.planning", description=__doc__)
    jax.config.update("jax_platforms", "cpu")
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

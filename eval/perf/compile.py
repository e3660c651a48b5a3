"""How long programs take to compile, and how large they are: ``python -m eval.perf.compile [options]``.

For every model, length and policy the programs of one row per data shard are traced, lowered and compiled, each as if
it were the first, without weights and without a cache of programs:

- prefill: reads a prompt and prunes each layer before the next one runs;
- score: reads a prompt and keeps all of it, with what the policy reads, for many questions and budgets;
- prune: prunes what was scored;
- decode: a block of decode steps over the pruned cache.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator

import jax
import tyro
from rich.console import Console
from rich.table import Table

from acckv_jax import CachePolicy
from eval.perf.aot_report import fits, gib
from eval.perf.compiled import Compiled, compiled
from eval.perf.plan import Plan, planned, policies_for
from eval.perf.topologies import Topology, find_topology
from models import command

Program = Callable[[], jax.stages.Lowered]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles programs for devices that need not be there, and prints how long it takes and what they need."""

    models: tuple[str, ...] = ("smolav",)
    """smolav, qwen2_5_omni_7b, qwen2_5_omni_3b, videollama2_1_7b_av."""
    topology: str = "cpu:1"
    """cpu:1 and the like, or TPU chips such as v5e:4x4, v5p:2x2x2, v6e:4x4 (needs libtpu)."""
    mesh: str | None = None
    """Sizes of data, fsdp and tensor, like data=4,tensor=4. Default: tensor as far as KV heads go, the rest data."""
    contexts: tuple[int, ...] = (512, 2048)
    """Prompt tokens of a row."""
    policies: tuple[str, ...] = ("full", "h2o", "snapkv", "acckv", "acckv_plus")
    """Cache policies."""
    budget: float = 0.2
    """Fraction of the prompt that they keep."""
    steps: int = 64
    """Tokens to decode, for which the cache has room."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
        model: of Options.
        context: tokens of a row.
        policy: its name.
        program: prefill, score, prune or decode.
        lowering: seconds of tracing and lowering.
        text: bytes of the lowered program (StableHLO).
        result: what the compiler says.
    """

    model: str
    context: int
    policy: str
    program: str
    lowering: float
    text: int
    result: Compiled


def programs(plan: Plan, policy: CachePolicy) -> Iterator[tuple[str, Program]]:
    """The programs of a policy, by name, each made when it is called."""
    yield "prefill", lambda: plan.prefill(plan.group, policy).lower()
    yield "score", lambda: plan.score(policy).lower()
    scored = plan.result(plan.score(policy))[1]
    yield "prune", lambda: plan.prune(scored, policy)
    logits, cache = plan.result(plan.prefill(plan.group, policy))
    yield "decode", lambda: plan.decode(logits, cache, policy, single=plan.on_cpu)


def rows_of(plan: Plan, model: str, name: str, policy: CachePolicy) -> Iterator[Row]:
    """Compiles one program after the other."""
    for program, make in programs(plan, policy):
        jax.clear_caches()
        start = time.perf_counter()
        lowered = make()
        seconds = time.perf_counter() - start
        yield Row(model, plan.context, name, program, seconds, len(lowered.as_text()), compiled(lowered))


def all_rows(options: Options, topology: Topology) -> Iterator[Row]:
    """Those of all models, lengths and policies.

    Raises:
        UserError: on any mistake in the options.
    """
    plans = [
        (model, planned(model, topology, options.mesh, context, options.steps))
        for model in options.models
        for context in options.contexts
    ]
    policies = [policies_for(plan.preset, plan.context, options.policies, options.budget) for _, plan in plans]
    for (model, plan), named in zip(plans, policies, strict=True):
        for name, policy in named.items():
            yield from rows_of(plan, model, name, policy)


def print_rows(options: Options, topology: Topology, rows: list[Row]) -> None:
    """Prints the table for people."""
    table = Table(title=f"{topology.name}: {len(topology.devices)} x {topology.kind}, budget {options.budget:g}")
    for name in ("model", "tokens", "policy", "program"):
        table.add_column(name)
    for name in ("lowering s", "compiling s", "program kB", "GiB per device"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.context:,}",
            row.policy,
            row.program,
            f"{row.lowering:.1f}",
            f"{row.result.seconds:.1f}",
            f"{row.text / 1000:,.0f}",
            gib(row.result.needs),
            fits(row.result, topology.memory),
        )
    Console(width=130).print(table)


def run(options: Options) -> None:
    """Compiles and prints.

    Raises:
        UserError: on any mistake in the options.
    """
    topology = find_topology(options.topology)  # before any array is made, which fixes the number of CPU devices
    rows, progress = [], Console(stderr=True)
    for row in all_rows(options, topology):
        rows.append(row)
        took = f"{row.lowering:.1f} + {row.result.seconds:.1f} s"
        progress.print(f"{row.model}, {row.context:,} tokens, {row.policy}, {row.program}: {took}", soft_wrap=True)
    if options.json:
        about = {**dataclasses.asdict(options), "device": topology.kind, "jax": jax.__version__}
        del about["json"]
        print(json.dumps(about | {"programs": [dataclasses.asdict(row) for row in rows]}))
        return
    print_rows(options, topology, rows)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.compile", description=__doc__)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    return command.run(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

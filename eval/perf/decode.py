"""Measures what a cache policy costs and saves: ``python -m eval.perf.decode [options]``.

For a random Qwen2 or for SmolLM2: prefill, column statistics, pruning, decoding, live bytes, compiled memory, and how
near decoding comes to the machine's measured bandwidth; for AccKV also many budgets from one prefill. Times are
wall-clock seconds after a warm-up run.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

import acckv_jax
from acckv_jax import CachePolicy
from eval.perf.bench import TAU, TEXT, Bench, modalities
from eval.perf.roofline import measured_bandwidth, step_bytes
from eval.policies import check_policies
from models import command
from models.errors import UserError
from models.policies import ONE_PASS, build_policy, check_one_pass

SHARING = "acckv"
"""The policy that many budgets from one prefill are measured for."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures prefill, statistics, pruning and decoding per policy and budget."""

    model: Literal["qwen2", "smollm2"] = "qwen2"
    """qwen2: random, 8 layers, hidden 512, 8/4 heads of 64; smollm2: the pretrained 135M."""
    context: int = 4096
    """Prompt tokens."""
    budgets: tuple[float, ...] = (0.5, 0.2)
    """Fractions of the prompt to keep."""
    policies: tuple[str, ...] = ONE_PASS
    """Policies to measure; full is measured first in any case."""
    shared: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
    """Budgets that AccKV prunes from one prefill, for what they cost together; none: not measured."""
    steps: int = 64
    """Decode steps to time."""
    repeats: int = 3
    """Runs of which the fastest counts."""
    one_core: bool = False
    """Use one processor core only."""
    json: bool = False
    """Print one JSON object per row instead of the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy at one budget.

    Attributes:
        policy: its name.
        budget: fraction of the prompt kept.
        prefill_seconds: prompt with the policy's column sums, everything kept.
        statistics_share: what the sums add, as a share of the prefill without any.
        prune_seconds: pruning all layers.
        prune_share: of the prefill without sums.
        decode_ms: milliseconds per decoded token.
        decode_ratio: to the full cache.
        roofline: least possible time by measured bandwidth over measured time.
        cache_bytes: live K and V of the prompt.
        metadata_bytes: live bytes of the rest.
        prefill_temp_bytes: scratch memory of the compiled prefill that prunes layer by layer.
        bandwidth: measured, in GB/s.
    """

    policy: str
    budget: float
    prefill_seconds: float
    statistics_share: float
    prune_seconds: float
    prune_share: float
    decode_ms: float
    decode_ratio: float
    roofline: float
    cache_bytes: int
    metadata_bytes: int
    prefill_temp_bytes: int
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Shared:
    """Several budgets from one prefill.

    Attributes:
        policy: its name.
        budgets: fractions of the prompt kept.
        ratio: the prefill with column sums and the prunes for all budgets, to a prefill without sums.
    """

    policy: str
    budgets: tuple[float, ...]
    ratio: float


def chosen_policies(options: Options) -> dict[str, dict[float, CachePolicy]]:
    """Every policy at its budgets, full first, and AccKV at the shared budgets too.

    Raises:
        UserError: on an unknown policy, a bad budget or number, or a budget too small for the prompt.
    """
    if options.context <= TEXT:
        raise UserError(f"--context must be at least {TEXT + 1} tokens, of which {TEXT} are text.")
    if options.steps < 1 or options.repeats < 1:
        raise UserError("--steps and --repeats must be at least 1.")
    chosen: dict[str, dict[float, CachePolicy]] = {"full": {1.0: build_policy("full", 1.0)}}
    for name in options.policies:
        budgets = options.budgets + (options.shared if name == SHARING else ())
        if name != "full" and budgets:
            chosen[name] = {budget: build_policy(name, budget, tau=TAU[options.model]) for budget in budgets}
    for name, policies in chosen.items():
        labelled = {f"{name} at budget {budget:g}": policy for budget, policy in policies.items()}
        check_one_pass(labelled)
        check_policies(labelled, modalities(options.context)[0])
    return chosen


def measure(options: Options) -> Iterator[Row | Shared]:
    """Measures full, then every other policy at every budget; AccKV's shared budgets after its rows.

    Raises:
        UserError: on any mistake in the options.
    """
    chosen = chosen_policies(options)
    bench = Bench.make(options.model, options.context, steps=options.steps, repeats=options.repeats)
    bandwidth = measured_bandwidth()
    plain = full_step = None
    for name, policies in chosen.items():
        (logits, scored), seconds = bench.prefill(next(iter(policies.values())))
        plain = plain or seconds
        for budget in (1.0,) if name == "full" else options.budgets:
            policy = policies[budget]
            cache, pruning = bench.prune(scored, policy)
            used, decoding = acckv_jax.cache_bytes(cache), bench.decode(logits, cache, policy)
            full_step = full_step or decoding
            yield Row(
                policy=name,
                budget=budget,
                prefill_seconds=seconds,
                statistics_share=seconds / plain - 1,
                prune_seconds=pruning,
                prune_share=pruning / plain,
                decode_ms=decoding * 1e3,
                decode_ratio=decoding / full_step,
                roofline=step_bytes(bench.params, cache) / bandwidth / decoding,
                cache_bytes=used.prompt,
                metadata_bytes=used.metadata,
                prefill_temp_bytes=bench.prefill_temp_bytes(policy),
                bandwidth=bandwidth / 1e9,
            )
        if name == SHARING and options.shared:
            prunes = sum(bench.prune(scored, policies[budget])[1] for budget in options.shared)
            yield Shared(name, options.shared, (seconds + prunes) / plain)


def table(rows: Iterator[Row | Shared], options: Options) -> Table:
    """The rows for people."""
    shown = Table()
    shown.add_column("policy")
    for name in ("budget", "prefill s", "sums", "prune ms", "", "decode ms", "ratio", "roofline", "K+V MB", "meta MB"):
        shown.add_column(name, justify="right")
    shown.add_column("prefill temp MB", justify="right")
    for row in rows:
        if isinstance(row, Shared):
            budgets = ", ".join(f"{budget:g}" for budget in row.budgets)
            count = f"{len(row.budgets)} budgets from one prefill"
            shown.caption = f"{row.policy}: {count} ({budgets}) take {row.ratio:.2f} of a plain prefill"
            continue
        shown.title = (
            f"{options.model}, {options.context} tokens, {options.steps} decode steps, batch 1, "
            f"measured bandwidth {row.bandwidth:.1f} GB/s"
        )
        shown.add_row(
            row.policy,
            f"{row.budget:g}",
            f"{row.prefill_seconds:.2f}",
            f"{row.statistics_share:+.1%}",
            f"{row.prune_seconds * 1e3:.1f}",
            f"{row.prune_share:.1%}",
            f"{row.decode_ms:.2f}",
            f"{row.decode_ratio:.2f}",
            f"{row.roofline:.0%}",
            f"{row.cache_bytes / 1e6:.2f}",
            f"{row.metadata_bytes / 1e6:.2f}",
            f"{row.prefill_temp_bytes / 1e6:.1f}",
        )
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.decode", description=__doc__)
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return command.run(lambda: run(options))


def run(options: Options) -> None:
    """Measures and prints.

    Raises:
        UserError: on any mistake in the options.
    """
    if not options.json:
        Console(width=140).print(table(measure(options), options))
        return
    for row in measure(options):
        print(json.dumps(dataclasses.asdict(row)), flush=True)


if __name__ == "__main__":
    sys.exit(main())

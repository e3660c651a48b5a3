"""What a GPU makes of the cache policies: ``python -m eval.perf.gpu [options]``.

First every policy runs a short episode on the device and is compared with the CPU (`eval.perf.episodes`). Then the
device serves a decoder at full size with random weights (`eval.perf.served`): prefill, column sums, pruning, decoding,
memory, and the shares of the device's peak and of its measured bandwidth. The exit status is 1 if an episode differs.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from acckv_jax import CachePolicy
from acckv_jax.attention import Implementation
from eval.perf.aot_report import gib
from eval.perf.episodes import TOLERANCES, Check, checks
from eval.perf.gpu_rows import Row, rows_of
from eval.perf.plan import Preset, find_preset, policies_for
from models import command
from models.errors import UserError
from models.files import write_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares every policy on this process's first device with the CPU, and measures speed and memory."""

    model: str = "qwen2_5_omni_7b"
    """qwen2_5_omni_7b, qwen2_5_omni_3b, videollama2_1_7b_av, smolav; or tiny, to rehearse on a CPU."""
    layers: int | None = None
    """Run only so many of its layers."""
    contexts: tuple[int, ...] = (20480,)
    """Prompt tokens of a row."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Rows that are decoded together, of one prompt each; they are prefilled one after the other."""
    policies: tuple[str, ...] = ("full", "snapkv", "acckv")
    """Policies to measure."""
    budget: float = 0.2
    """Fraction of the prompt that they keep."""
    steps: int = 64
    """Decode steps to time."""
    repeats: int = 3
    """Runs of which the fastest counts."""
    implementation: Implementation | None = None
    """Attention of prompts: xla, or on request gpu (cuDNN). Default: what the library takes on this platform."""
    only_checks: bool = False
    """Compare with the CPU, and measure nothing."""
    skip_checks: bool = False
    """Measure without comparing first."""
    profile: Path | None = None
    """Folder for a trace of one prefill and one decode loop, of the first policy and batch that fit."""
    json: Path | None = None
    """File for all results, written anew after each one."""


def chosen(options: Options) -> tuple[Preset, dict[int, dict[str, CachePolicy]]]:
    """The model, and for each context its policies.

    Raises:
        UserError: on any mistake in the options.
    """
    if options.only_checks and options.skip_checks:
        raise UserError("--only-checks and --skip-checks leave nothing to do; give one of them.")
    if not options.contexts or not options.batches or not options.policies:
        raise UserError("--contexts, --batches and --policies need at least one value each.")
    if min(*options.batches, options.repeats) < 1:
        raise UserError("--batches and --repeats must be at least 1.")
    command.check_output(options.json)
    if options.profile is not None and options.profile.is_file():
        raise UserError(f"{options.profile} is a file; name a folder for --profile.")
    presets = {context: find_preset(options.model, context, options.steps) for context in options.contexts}
    preset = presets[options.contexts[0]]
    most = preset.decoder.num_hidden_layers
    layers = most if options.layers is None else options.layers
    if not 1 <= layers <= most:
        raise UserError(f"--layers must be between 1 and {most} for {options.model}, not {layers}.")
    decoder = dataclasses.replace(preset.decoder, num_hidden_layers=layers)
    preset = dataclasses.replace(preset, decoder=decoder)
    policies = {
        context: policies_for(preset, context, options.policies, options.budget) for context in options.contexts
    }
    return preset, policies


def reference_device() -> Any:
    """The CPU.

    Raises:
        UserError: if this process has none.
    """
    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        raise UserError(
            "The checks compare with the CPU, which JAX_PLATFORMS hides: add it, as in JAX_PLATFORMS=cuda,cpu."
        ) from error


def check_table(found: list[Check], device: Any) -> Table:
    """The checks for people."""
    limits = "; ".join(
        f"{dtype}: {most.prompt:g} and {most.later:g} of the largest logit, {most.kept:.0%} of the slots"
        for dtype, most in TOLERANCES.items()
    )
    with_itself = " - no GPU here: the CPU is compared with itself" if device.platform == "cpu" else ""
    table = Table(
        title=f"{device.device_kind} against float32 on the CPU{with_itself}",
        caption=f"Most that is allowed ({limits}).",
        caption_justify="left",
    )
    for name in ("policy", "type", "layers"):
        table.add_column(name)
    for name in ("prompt's logits", "later logits", "same slots"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in found:
        table.add_row(
            one.policy,
            one.dtype,
            "in a scan" if one.scans else "one by one",
            f"{one.prompt:.1e}",
            f"{one.later:.1e}",
            f"{one.kept:.1%}",
            "ok" if one.passed else "DIFFERS" if one.finite else "NOT FINITE",
        )
    return table


def speed_table(rows: list[Row], options: Options, device: Any) -> Table:
    """The measurements for people."""
    bandwidth = next((f"{row.bandwidth / 1e9:,.0f} GB/s" for row in rows if row.bandwidth), "not measured")
    table = Table(
        title=f"{options.model}, random weights, {options.layers or 'all'} layers, budget {options.budget:g}, "
        f"{options.steps} decode steps, attention {options.implementation or 'by default'}\n"
        f"{device.device_kind}, measured bandwidth {bandwidth}",
        caption="Prefill, sums and prune: seconds of one row. GiB: K and V of the batch; the programs' needs by the "
        "compiler, weights included; the most in use on the device since the start.",
        caption_justify="left",
    )
    table.add_column("policy")
    for name in ("tokens", "batch", "prefill s", "of peak", "sums s", "prune s", "decode ms", "tokens/s", "roofline"):
        table.add_column(name, justify="right")
    for name in ("K+V GiB", "prefill GiB", "decode GiB", "peak GiB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.policy,
            f"{row.context:,}",
            str(row.batch),
            _shown(row.prefill_seconds, ".3f"),
            _shown(row.peak_share, ".0%"),
            _shown(row.sums_seconds, "+.3f"),
            _shown(row.prune_seconds, ".3f"),
            _shown(row.decode_ms, ".2f"),
            _shown(row.tokens_per_second, ",.0f"),
            _shown(row.roofline, ".0%"),
            *(gib(size) for size in (row.kv_bytes, row.prefill_needs, row.decode_needs, row.peak_bytes)),
        )
    return table


def _shown(number: float | None, form: str) -> str:
    return "unknown" if number is None else format(number, form)


def run(options: Options) -> bool:
    """Checks, measures and prints; whether every check passed.

    Raises:
        UserError: on any mistake in the options.
    """
    preset, policies = chosen(options)
    device, console, progress = jax.devices()[0], Console(width=150), Console(stderr=True)
    about = {**dataclasses.asdict(options), "device": device.device_kind, "jax": jax.__version__}
    result: dict[str, Any] = json.loads(json.dumps(about, default=str)) | {"checks": [], "rows": []}

    def keep(kind: str, one: Check | Row) -> None:
        result[kind].append(dataclasses.asdict(one))
        if options.json is not None:
            write_text(options.json, json.dumps(result, indent=1) + "\n")
        progress.print(f"{kind} {len(result[kind])}: {one.policy}", soft_wrap=True, highlight=False)

    found: list[Check] = []
    if not options.skip_checks:
        for one in checks(device, reference_device(), options.implementation):
            found.append(one)
            keep("checks", one)
        console.print(check_table(found, device))
    if not options.only_checks:
        rows, folder = [], options.profile
        more = {"steps": options.steps, "repeats": options.repeats, "attention": options.implementation}
        for served, row in rows_of(preset, policies, options.batches, **more):
            rows.append(row)
            keep("rows", row)
            if folder is not None and row.problem is None:  # the first that fits
                served.trace(policies[row.context][row.policy], row.batch, folder)
                folder = None
        console.print(speed_table(rows, options, device))
        for row in rows:
            if row.problem:
                console.print(
                    f"{row.policy}, {row.context:,} tokens, batch {row.batch}: {row.problem}.", soft_wrap=True
                )
    return all(one.passed for one in found)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, 1 if a check found a difference, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.gpu", description=__doc__)
    passed: list[bool] = []
    return command.run(lambda: passed.append(run(options))) or int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())

"""What a model at full size needs on devices that need not be there: ``python -m eval.perf.aot [options]``.

Compiles the decoder ahead of time, without any weights: the prefill of one row per data shard, keeping everything and
pruning each layer before the next one runs; the pruning by itself of a prompt that was read in full; and decoding the
whole batch with the full and with the pruned cache. All numbers are the compiler's estimates, per device.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator

import jax
import tyro
from rich.console import Console

from acckv_jax import CachePolicy
from eval.perf.aot_report import Row, capacities, print_report
from eval.perf.compiled import compiled
from eval.perf.plan import FULL, Plan, device_bytes, key_value_bytes, planned, policies_for
from eval.perf.topologies import Topology, find_topology
from models import command
from models.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles a model at full size for devices that need not be there, and prints what it needs."""

    model: str = "qwen2_5_omni_7b"
    """qwen2_5_omni_7b, qwen2_5_omni_3b, videollama2_1_7b_av or smolav."""
    topology: str = "v5e:4x4"
    """TPU chips such as v5e:4x4, v5p:2x2x2, v6e:2x4 (needs libtpu), or cpu:8 for 8 virtual CPU devices."""
    mesh: str | None = None
    """Sizes of data, fsdp and tensor, like data=4,tensor=4. Default: tensor as far as KV heads go, the rest data."""
    context: int = 20480
    """Prompt tokens of a row."""
    batch: int = 32
    """Rows that are decoded together."""
    steps: int = 64
    """Tokens to decode, for which the cache has room."""
    policy: str = "acckv"
    """Cache policy to compare with the full cache."""
    budget: float = 0.2
    """Fraction of the prompt that it keeps."""
    json: bool = False
    """Print one JSON object instead of tables."""


def rows_of(plan: Plan, batch: int, policy: CachePolicy) -> Iterator[Row]:
    """Compiles one program after the other."""
    policies = {"full": FULL, "pruned": policy}
    for name, each in policies.items():
        prefill = plan.prefill(plan.group, each)
        _, cache = plan.result(prefill)
        result = compiled(prefill.lower())
        yield Row("prefill", name, plan.group, key_value_bytes(cache), device_bytes(cache), result)
    scored = plan.result(plan.score(policy))[1]
    result = compiled(plan.prune(scored, policy))
    yield Row("prune", "pruned", plan.group, key_value_bytes(cache), device_bytes(cache), result)
    for name, each in policies.items():
        logits, cache = plan.result(plan.prefill(batch, each))
        result = compiled(plan.decode(logits, cache, each))
        yield Row("decode", name, batch, key_value_bytes(cache), device_bytes(cache), result)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.aot", description=__doc__)
    jax.config.update("jax_platforms", "cpu")
    return command.run(lambda: run(options))


def chosen(options: Options) -> tuple[Topology, Plan, CachePolicy]:
    """What is to be compiled.

    Raises:
        UserError: on any mistake in the options.
    """
    topology = find_topology(options.topology)  # before any array is made, which fixes the number of CPU devices
    plan = planned(options.model, topology, options.mesh, options.context, options.steps)
    policy = policies_for(plan.preset, plan.context, [options.policy], options.budget)[options.policy]
    if options.batch < 1 or options.batch % plan.group:
        raise UserError(
            f"--batch {options.batch} cannot be divided over the {plan.group} shards of rows of this mesh; "
            f"give a multiple of {plan.group}."
        )
    return topology, plan, policy


def run(options: Options) -> None:
    """Compiles and prints.

    Raises:
        UserError: on any mistake in the options.
    """
    topology, plan, policy = chosen(options)
    rows = list(rows_of(plan, options.batch, policy))
    weights = device_bytes(plan.params)
    about = {
        **{name: value for name, value in dataclasses.asdict(options).items() if name != "json"},
        "mesh": dict(plan.mesh.shape),
        "device": topology.kind,
        "devices": len(topology.devices),
        "memory": topology.memory,
        "weights": weights,
        "towers": plan.towers,
        "tokens": plan.preset.decoder.max_position_embeddings,
        "jax": jax.__version__,
    }
    if options.json:
        capacity = [dataclasses.asdict(each) for each in capacities(about, rows)]
        print(json.dumps(about | {"programs": [dataclasses.asdict(row) for row in rows], "capacity": capacity}))
        return
    print_report(about, rows, Console(width=150))


if __name__ == "__main__":
    sys.exit(main())

"""What a model at full size needs on devices that need not be there: ``python -m eval.perf.aot [options]``.

Compiles the decoder ahead of time, without any weights: the prefill of one row per data shard, keeping everything and
pruning each layer before the next one runs; the pruning by itself of a prompt that was read in full; and decoding the
whole batch with the full and with the pruned cache. All numbers are the compiler's estimates, per device.
"""

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console

import acckv_jax
from acckv_jax import CachePolicy, KVCache, Prompt, Scored, ShardingRules
from acckv_jax.sharding import axis_size, mesh_spec
from eval.perf.aot_report import Row, capacities, print_report
from eval.perf.bench import TEXT, modalities
from eval.perf.compiled import compiled
from eval.perf.topologies import Topology, find_topology, make_mesh
from eval.policies import build_policy, check_policies
from models import command
from models.decoder import Decoder, DecoderConfig
from models.errors import UserError
from models.layers.init import FastRngs, Params
from models.over_decoder import DecoderStep
from models.placement import abstract_params_on
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.modeling import Thinker
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.modeling import VideoLLaMA2

DTYPE = jnp.dtype(jnp.bfloat16)
TAU = 0.9
"""Threshold of AccKV's gate for Qwen2."""
FULL = acckv_jax.make_policy("full")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compiles a model at full size for devices that need not be there, and prints what it needs."""

    model: str = "qwen2_5_omni_7b"
    """qwen2_5_omni_7b, qwen2_5_omni_3b or videollama2_1_7b_av."""
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


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model at full size.

    Attributes:
        decoder: its decoder.
        make: builds all of it, towers included, around a decoder named `decoder`.
    """

    decoder: DecoderConfig
    make: Callable[[], nnx.Module]


def _thinker(config: ThinkerConfig) -> Preset:
    return Preset(config.text, lambda: Thinker(config, rngs=FastRngs(0), dtype=DTYPE))


def _videollama2(config: VideoLLaMA2Config) -> Preset:
    return Preset(config.decoder, lambda: VideoLLaMA2(config, rngs=FastRngs(0), dtype=DTYPE))


PRESETS: dict[str, Callable[[], Preset]] = {
    "qwen2_5_omni_7b": lambda: _thinker(ThinkerConfig.omni_7b()),
    "qwen2_5_omni_3b": lambda: _thinker(ThinkerConfig.omni_3b()),
    "videollama2_1_7b_av": lambda: _videollama2(VideoLLaMA2Config.videollama2_1_7b_av()),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A decoder on a mesh, as shapes.

    Attributes:
        preset: the model.
        mesh: the devices.
        step: the decoder.
        params: its parameters.
        towers: bytes per device of the model's other parameters.
        context: tokens of a row.
        steps: tokens to decode.
    """

    preset: Preset
    mesh: Mesh
    decoder: acckv_jax.Decoder
    params: Params
    towers: int
    context: int
    steps: int

    @classmethod
    def make(cls, preset: Preset, mesh: Mesh, context: int, steps: int) -> "Plan":
        """Defines the model on a mesh."""
        graph, params = abstract_params_on(mesh, lambda: Decoder(preset.decoder, rngs=FastRngs(0), dtype=DTYPE))
        _, whole = abstract_params_on(mesh, preset.make)
        del whole["decoder"]
        decoder = acckv_jax.Decoder(DecoderStep(graph), preset.decoder.num_hidden_layers, scans=True)
        return cls(preset, mesh, decoder, params, device_bytes(whole), context, steps)

    @property
    def group(self) -> int:
        """Rows that are prefilled together: one for each shard of the batch."""
        with jax.set_mesh(self.mesh):
            return axis_size(ShardingRules().batch)

    def prefill(self, rows: int, policy: CachePolicy) -> jax.stages.Traced:
        """The program that prefills some rows."""
        reserved = policy.reserved_slots(self.steps)
        run = functools.partial(acckv_jax.prefill, self.decoder, policy=policy, reserved_slots=reserved)
        return self._prompted(run, rows)

    def result(self, traced: jax.stages.Traced) -> Any:
        """What a traced program returns, as shapes on the devices."""
        return self._placed(traced.out_info)

    def prune(self, policy: CachePolicy) -> jax.stages.Lowered:
        """The program that prunes a group that was read in full, all layers in one scan."""
        run = functools.partial(acckv_jax.score, self.decoder, policies=(policy,))
        scored: Scored = self.result(self._prompted(run, self.group))[1]
        reserved = policy.reserved_slots(self.steps)
        with jax.set_mesh(self.mesh):
            return jax.jit(functools.partial(acckv_jax.prune, policy=policy, reserved_slots=reserved)).lower(scored)

    def decode(self, logits: jax.ShapeDtypeStruct, cache: KVCache, policy: CachePolicy) -> jax.stages.Lowered:
        """The program that decodes a batch, its cache donated."""
        loop = functools.partial(acckv_jax.decode, self.decoder, policy=policy.while_decoding(), steps=self.steps)
        with jax.set_mesh(self.mesh):
            key = jax.eval_shape(lambda: jax.random.key(0))
            state = self._placed(jax.eval_shape(acckv_jax.start_decoding, logits, cache, key))
            return jax.jit(loop, donate_argnames="state").lower(self.params, state=state)

    def _prompted(self, run: Callable[..., Any], rows: int) -> jax.stages.Traced:
        """A program that reads a prompt, traced."""
        config, batch = self.preset.decoder, ShardingRules().batch
        inputs = self._array((rows, self.context, config.hidden_size), DTYPE, batch)
        length: Any = self._array((rows,), jnp.int32, batch)
        prompt = Prompt(self._array((rows, self.context), jnp.int8, batch), length)
        named = {}
        if config.mrope_section:
            axes = len(config.mrope_section)
            named["positions"] = self._array((axes, rows, self.context), jnp.int32, None, batch)
            named["delta"] = length
        with jax.set_mesh(self.mesh):
            # The table of embeddings is in memory too, though inputs are embedded already.
            return jax.jit(run, keep_unused=True).trace(self.params, inputs, prompt, **named)

    def _array(self, shape: tuple[int, ...], dtype: Any, *axes: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, mesh_spec(*axes)))

    def _placed(self, tree: Any) -> Any:
        """Shapes from tracing, on the devices; what has no sharding is on all of them."""

        def placed(x: Any) -> jax.ShapeDtypeStruct:
            spec = PartitionSpec() if x.sharding is None else x.sharding.spec
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

        return jax.tree.map(placed, tree)


def device_bytes(tree: Any) -> int:
    """Bytes of arrays on each device, from their shapes."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def key_value_bytes(cache: KVCache) -> int:
    """Bytes of K and V on each device."""
    return device_bytes([(stack.k, stack.v) for stack in cache.stacks])


def rows_of(plan: Plan, batch: int, policy: CachePolicy) -> Iterator[Row]:
    """Compiles one program after the other."""
    policies = {"full": FULL, "pruned": policy}
    for name, each in policies.items():
        prefill = plan.prefill(plan.group, each)
        _, cache = plan.result(prefill)
        result = compiled(prefill.lower())
        yield Row("prefill", name, plan.group, key_value_bytes(cache), device_bytes(cache), result)
    result = compiled(plan.prune(policy))
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


def planned(options: Options) -> tuple[Topology, Plan, CachePolicy]:
    """What is to be compiled.

    Raises:
        UserError: on any mistake in the options.
    """
    if options.model not in PRESETS:
        raise UserError(f"Unknown model {options.model!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[options.model]()
    most = preset.decoder.max_position_embeddings
    if options.context <= TEXT or options.steps < 1 or options.context + options.steps > most:
        raise UserError(
            f"--context must be above {TEXT} and --steps above 0, and both together at most {most} for "
            f"{options.model}, not {options.context} and {options.steps}."
        )
    topology = find_topology(options.topology)  # before any array is made, which fixes the number of CPU devices
    policy = build_policy(options.policy, options.budget, tau=TAU)
    check_policies({options.policy: policy}, modalities(options.context)[0])
    mesh = make_mesh(topology, options.mesh, preset.decoder.num_key_value_heads)
    plan = Plan.make(preset, mesh, options.context, options.steps)
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
    topology, plan, policy = planned(options)
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

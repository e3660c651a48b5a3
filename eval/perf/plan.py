"""The programs of a model at full size, for devices that need not be there: shapes alone, no weights."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import acckv_jax
from acckv_jax import CachePolicy, KVCache, Prompt, Scored, ShardingRules
from acckv_jax.sharding import axis_size, mesh_spec
from eval.perf.bench import TEXT, modalities
from eval.perf.topologies import Topology
from eval.policies import check_layers, check_policies
from models.acckv_tau import TAU
from models.decoder import Decoder, DecoderConfig
from models.devices import make_mesh
from models.errors import UserError
from models.layers.init import FastRngs, Params
from models.over_decoder import SINGLE, DecoderStep
from models.placement import abstract_params_on
from models.policies import build_policy, check_one_pass
from models.qwen2_5_omni.config import ThinkerConfig
from models.qwen2_5_omni.modeling import Thinker
from models.smolav.config import SmolAVConfig
from models.smolav.modeling import SmolAV
from models.videollama2.config import VideoLLaMA2Config
from models.videollama2.modeling import VideoLLaMA2

FULL = acckv_jax.make_policy("full")


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model at full size.

    Attributes:
        family: a key of `models.acckv_tau.TAU`.
        decoder: its decoder.
        make: builds all of it, towers included, around a decoder named `decoder`.
        dtype: of its parameters.
    """

    family: str
    decoder: DecoderConfig
    make: Callable[[], nnx.Module]
    dtype: jnp.dtype = jnp.dtype(jnp.bfloat16)


def _thinker(config: ThinkerConfig) -> Preset:
    return Preset("qwen2_5_omni", config.text, lambda: Thinker(config, rngs=FastRngs(0), dtype=jnp.dtype(jnp.bfloat16)))


def _videollama2(config: VideoLLaMA2Config) -> Preset:
    return Preset(
        "videollama2", config.decoder, lambda: VideoLLaMA2(config, rngs=FastRngs(0), dtype=jnp.dtype(jnp.bfloat16))
    )


def _smolav(config: SmolAVConfig) -> Preset:
    return Preset("smolav", config.decoder, lambda: SmolAV(config, rngs=FastRngs(0)), jnp.dtype(jnp.float32))


PRESETS: dict[str, Callable[[], Preset]] = {
    "smolav": lambda: _smolav(SmolAVConfig.smollm2_135m()),
    "qwen2_5_omni_7b": lambda: _thinker(ThinkerConfig.omni_7b()),
    "qwen2_5_omni_3b": lambda: _thinker(ThinkerConfig.omni_3b()),
    "videollama2_1_7b_av": lambda: _videollama2(VideoLLaMA2Config.videollama2_1_7b_av()),
    "tiny": lambda: _thinker(ThinkerConfig.tiny()),
}
"""Models by name; `tiny` is for rehearsals. SmolAV's encoders, of 16 million parameters, are apart and not counted."""


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
        graph, params = abstract_params_on(mesh, lambda: Decoder(preset.decoder, rngs=FastRngs(0), dtype=preset.dtype))
        _, whole = abstract_params_on(mesh, preset.make)
        del whole["decoder"]
        decoder = acckv_jax.Decoder(DecoderStep(graph), preset.decoder.num_hidden_layers, scans=True)
        return cls(preset, mesh, decoder, params, device_bytes(whole), context, steps)

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are CPUs, which decode over single layers."""
        return self.mesh.devices.flat[0].platform == "cpu"

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

    def score(self, policy: CachePolicy) -> jax.stages.Traced:
        """The program that reads a group in full, with the statistics of a policy."""
        run = functools.partial(acckv_jax.score, self.decoder, policies=(policy.with_budget(1.0),))
        return self._prompted(run, self.group)

    def prune(self, scored: Scored, policy: CachePolicy) -> jax.stages.Lowered:
        """The program that prunes a group that was read in full, all layers in one scan."""
        reserved = policy.reserved_slots(self.steps)
        with jax.set_mesh(self.mesh):
            return jax.jit(functools.partial(acckv_jax.prune, policy=policy, reserved_slots=reserved)).lower(scored)

    def decode(
        self, logits: jax.ShapeDtypeStruct, cache: KVCache, policy: CachePolicy, *, single: bool = False
    ) -> jax.stages.Lowered:
        """The program that decodes a batch, its cache donated; over single layers, as on CPUs, if `single`."""
        loop = functools.partial(acckv_jax.decode, self.decoder, policy=policy.while_decoding(), steps=self.steps)
        params = self.params
        with jax.set_mesh(self.mesh):
            if single:
                cache = self._placed(jax.eval_shape(acckv_jax.unstack, cache))
                params = params | {SINGLE: self._placed(jax.eval_shape(_single, params["layers"]))}
            key = jax.eval_shape(lambda: jax.random.key(0))
            state = self._placed(jax.eval_shape(acckv_jax.start_decoding, logits, cache, key))
            return jax.jit(loop, donate_argnames="state").lower(params, state=state)

    def _prompted(self, run: Callable[..., Any], rows: int) -> jax.stages.Traced:
        """A program that reads a prompt, traced."""
        config, batch = self.preset.decoder, ShardingRules().batch
        inputs = self._array((rows, self.context, config.hidden_size), self.preset.dtype, batch)
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


def _single(params: Params) -> tuple[Params, ...]:
    count = len(jax.tree.leaves(params)[0])
    return tuple(jax.tree.map(lambda x, i=i: x[i], params) for i in range(count))


def device_bytes(tree: Any) -> int:
    """Bytes of arrays on each device, from their shapes."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def key_value_bytes(cache: KVCache) -> int:
    """Bytes of K and V on each device."""
    return device_bytes([(stack.k, stack.v) for stack in cache.stacks])


def find_preset(model: str, context: int, steps: int) -> Preset:
    """A model at full size, by name.

    Raises:
        UserError: if there is no such model, or the prompt and the tokens to decode are too few or too many for it.
    """
    if model not in PRESETS:
        raise UserError(f"Unknown model {model!r}; choose one of {', '.join(PRESETS)}.")
    preset = PRESETS[model]()
    most = preset.decoder.max_position_embeddings
    if context <= TEXT or steps < 1 or context + steps > most:
        raise UserError(
            f"--context must be above {TEXT} and --steps above 0, and both together at most {most} for {model}, not "
            f"{context} and {steps}."
        )
    return preset


def planned(model: str, topology: Topology, axes: str | None, context: int, steps: int) -> Plan:
    """A model on all devices of a topology.

    Args:
        model: a key of PRESETS.
        topology: the devices.
        axes: sizes of the mesh as typed, or None (see `make_mesh`).
        context: tokens of a row.
        steps: tokens to decode.

    Raises:
        UserError: on any mistake in these.
    """
    preset = find_preset(model, context, steps)
    mesh = make_mesh(topology.devices, axes, preset.decoder.num_key_value_heads, topology.name)
    return Plan.make(preset, mesh, context, steps)


def policies_for(preset: Preset, context: int, names: Sequence[str], budget: float) -> dict[str, CachePolicy]:
    """Policies by name, checked against a prompt of `context` tokens and the preset's layers.

    Raises:
        UserError: on an unknown name, or a budget that is too small.
    """
    policies = {name: build_policy(name, budget, tau=TAU[preset.family]) for name in names}
    check_one_pass(policies)
    check_policies(policies, modalities(context)[0])
    check_layers(policies, preset.decoder.num_hidden_layers)
    return policies

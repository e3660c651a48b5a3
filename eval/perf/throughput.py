"""Tokens per second against batch, policy and budget: ``python -m eval.perf.throughput [options]``.

Rows are prefilled in groups of one row for each shard of the batch, each layer pruned before the next one runs, and
decoded together. Weights are random, unless a folder is given; the prompt is
random tokens, the same for all rows of a shard. Times are of the fastest run after one that compiles.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import NamedSharding
from rich.console import Console
from rich.table import Table

import acckv_jax
import models
from acckv_jax import CachePolicy, KVCache, Prompt, ShardingRules
from acckv_jax.generate import for_decoding
from acckv_jax.sharding import axis_size, mesh_spec
from eval.perf.aot_report import GIB
from eval.perf.bench import QWEN2, TEXT, modalities
from eval.perf.gpu_rows import fitting
from eval.perf.plan import PRESETS, device_bytes
from eval.perf.served import decoder_of, random_params
from eval.perf.timing import fastest
from eval.policies import check_layers, check_policies
from models import command
from models.acckv_tau import TAU
from models.decoder import DecoderConfig
from models.devices import Devices, OnDevices, is_first
from models.errors import UserError
from models.files import write_text
from models.layers.init import Params
from models.over_decoder import SINGLE, OverDecoder
from models.policies import build_policy, check_one_pass


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures prefill and decoding per policy, budget and batch, and how many rows would fit."""

    model: str = "qwen2"
    """Random weights: qwen2 (8 layers, hidden 512), tiny, smolav, qwen2_5_omni_7b, qwen2_5_omni_3b,
    videollama2_1_7b_av. Or the folder of a checkpoint."""
    context: int = 2048
    """Prompt tokens of a row."""
    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Rows that are decoded together."""
    policies: tuple[str, ...] = ("full", "snapkv", "acckv_plus")
    """Policies to measure."""
    budgets: tuple[float, ...] = (0.2,)
    """Fractions of the prompt that they keep."""
    steps: int = 64
    """Decode steps to time."""
    repeats: int = 3
    """Runs of which the fastest counts."""
    memory: float | None = None
    """GiB of a device to fill with rows. Default: what the device says that programs may use."""
    json: bool = False
    """Print one JSON object per row instead of the table."""
    out: Path | None = None
    """Also write the rows to this file, as JSON, anew after each one."""
    devices: OnDevices = Devices()


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy, budget and batch; None where it did not come to that.

    Attributes:
        policy: its name.
        budget: fraction of the prompt that it keeps.
        batch: rows decoded together.
        prefill_rows_per_second: of one group.
        decode_ms: milliseconds of a decode step of the whole batch.
        tokens_per_second: decoded, of the whole batch.
        row_bytes: of one row's cache, over all devices: K, V and the rest, slots to decode into included.
        temporaries: bytes per device of scratch memory, the larger of the two programs', by the compiler.
        rows_that_fit: into the devices' memory beside the weights and the temporaries, those of decoding in proportion
            to the rows; None if the memory is not known.
        problem: why there are no numbers.
    """

    policy: str
    budget: float
    batch: int
    prefill_rows_per_second: float | None = None
    decode_ms: float | None = None
    tokens_per_second: float | None = None
    row_bytes: int | None = None
    temporaries: int | None = None
    rows_that_fit: int | None = None
    problem: str | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A decoder and a group of prompts on the current mesh.

    Attributes:
        decoder: the decoder.
        params: its parameters.
        tokens: [group, T] token ids.
        prompt: modalities of them.
        steps: decode steps of a run.
        repeats: runs of which the fastest counts.
        memory: bytes of a device, if known.
    """

    decoder: acckv_jax.Decoder
    params: Params
    tokens: jax.Array
    prompt: Prompt
    steps: int
    repeats: int
    memory: int | None

    @property
    def group(self) -> int:
        """Rows that are prefilled together."""
        return self.tokens.shape[0]

    def rows(self, name: str, policy: CachePolicy, batches: tuple[int, ...]) -> Iterator[Row]:
        """One policy with every batch."""
        row = Row(name, float(policy.budget), 0)
        read = fitting(lambda: self._prefill(policy))
        if read is None:
            problem = "out of memory: not even one group can be prefilled"
            yield from (dataclasses.replace(row, batch=batch, problem=problem) for batch in batches)
            return
        (logits, cache), seconds, reading = read
        row = dataclasses.replace(
            row,
            prefill_rows_per_second=self.group / seconds,
            row_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(cache)) // self.group,
        )
        for batch in batches:
            decoded = fitting(functools.partial(self._decode, logits, cache, policy, batch // self.group))
            if decoded is None:
                yield dataclasses.replace(row, batch=batch, problem=f"out of memory: {batch} rows cannot be decoded")
                continue
            step, decoding = decoded
            yield dataclasses.replace(
                row,
                batch=batch,
                decode_ms=step * 1e3,
                tokens_per_second=batch / step,
                temporaries=max(reading, decoding),
                rows_that_fit=self._fitting(device_bytes(cache), reading, decoding / (batch // self.group)),
            )

    def _prefill(self, policy: CachePolicy) -> tuple[tuple[jax.Array, KVCache], float, int]:
        """Logits and cache of a group, seconds, and bytes of temporaries."""
        given = self.params, self.tokens, self.prompt
        reserved = policy.reserved_slots(self.steps)
        program = acckv_jax.jitted.prefill.lower(self.decoder, *given, policy, reserved_slots=reserved).compile()
        found, seconds = fastest(lambda: program(*given), self.repeats)
        return found, seconds, _temporaries(program)

    def _decode(self, logits: jax.Array, cache: KVCache, policy: CachePolicy, times: int) -> tuple[float, int]:
        """Seconds per step over a group's cache `times` times, and bytes of temporaries."""

        def fresh() -> tuple[Params, acckv_jax.DecodeState]:
            batch = for_decoding(self.decoder, repeated(cache, times))
            return self.params, acckv_jax.start_decoding(_repeated(logits, times, 0), batch, jax.random.key(0))

        loop = policy.while_decoding()
        program = acckv_jax.jitted.decode.lower(self.decoder, *fresh(), loop, steps=self.steps).compile()
        _, seconds = fastest(program, self.repeats, fresh)
        return seconds / self.steps, _temporaries(program)

    def _fitting(self, row: float, reading: int, decoding: float) -> int | None:
        """Rows that fit, from bytes per device: of a group's cache, of a prefill's temporaries, of decoding a group."""
        if self.memory is None:
            return None
        weights = device_bytes({name: part for name, part in self.params.items() if name != SINGLE})
        room = self.memory - weights
        return max(0, min(int((room - reading) / row), int(room / (row + decoding)))) * self.group


def _temporaries(program: Any) -> int:
    return program.memory_analysis().temp_size_in_bytes


def repeated(cache: KVCache, times: int) -> KVCache:
    """A cache whose rows are each there several times, in buffers of its own; on a mesh each shard repeats its own."""
    stacks = [
        jax.tree.map(functools.partial(_repeated, times=times, axis=int(stack.is_stack)), stack)
        for stack in cache.stacks
    ]
    return KVCache(tuple(stacks), _repeated(cache.length, times, 0), _repeated(cache.delta, times, 0))


def _repeated(x: jax.Array, times: int, axis: int) -> jax.Array:
    if times == 1 or x.ndim <= axis:
        return jnp.copy(x)

    def several(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x] * times, axis)

    if not isinstance(x.sharding, NamedSharding):
        return several(x)
    spec = x.sharding.spec
    return jax.shard_map(several, mesh=x.sharding.mesh, in_specs=spec, out_specs=spec)(x)


def sizes(model: str) -> tuple[str, DecoderConfig, jnp.dtype] | None:
    """Family, sizes and type of a model with random weights; None if it is a folder's."""
    if model == "qwen2":
        return "qwen2_5_omni", QWEN2, jnp.dtype(jnp.float32)
    if model not in PRESETS:
        return None
    preset = PRESETS[model]()
    return preset.family, preset.decoder, preset.dtype


def loaded(model: str, tokens: int) -> tuple[str, DecoderConfig, acckv_jax.Decoder, Params]:
    """Family, sizes, decoder and parameters of a model, on the current mesh.

    Args:
        model: as in the options.
        tokens: that a row will hold.

    Raises:
        UserError: if there is no such model, or rows are too long for it.
    """
    if random := sizes(model):
        family, config, dtype = random
        _check_length(model, config, tokens)
        return family, config, decoder_of(config, dtype), random_params(config, dtype)
    found = models.load(model)
    if not isinstance(found, OverDecoder):
        raise UserError(f"{model} is not built on models.decoder, whose random tokens are measured; give another.")
    _check_length(model, found.decoder_config, tokens)
    return found.family, found.decoder_config, found.decoder, found.params


def _check_length(model: str, config: DecoderConfig, tokens: int) -> None:
    most = config.max_position_embeddings
    if tokens > most:
        raise UserError(f"--context and --steps must be at most {most} together for {model}, not {tokens}.")


def group_prompt(context: int, vocabulary: int) -> tuple[jax.Array, Prompt]:
    """Random token ids [group, context] and their modalities, a row on each shard of the current mesh's batch."""
    rows, mesh = axis_size(ShardingRules().batch), jax.sharding.get_mesh()
    tokens = np.random.default_rng(0).integers(0, vocabulary, (rows, context), np.int32)
    prompt = acckv_jax.make_prompt(modalities(context).repeat(rows, axis=0))
    if mesh.empty:
        return jax.device_put(tokens), prompt
    return jax.device_put((tokens, prompt), NamedSharding(mesh, mesh_spec(ShardingRules().batch)))


def measure(options: Options) -> Iterator[Row]:
    """Measures one policy after the other on the current mesh.

    Raises:
        UserError: on any mistake in the options.
    """
    if options.context <= TEXT:
        raise UserError(f"--context must be at least {TEXT + 1} tokens, of which {TEXT} are text.")
    if not options.batches or not options.policies:
        raise UserError("--batches and --policies need at least one value each.")
    if min(*options.batches, options.steps, options.repeats) < 1:
        raise UserError("--batches, --steps and --repeats must be at least 1.")
    if options.memory is not None and options.memory <= 0:
        raise UserError(f"--memory must be above 0 GiB, not {options.memory:g}.")
    group = axis_size(ShardingRules().batch)
    if odd := [batch for batch in options.batches if batch % group]:
        raise UserError(
            f"--batches {odd[0]} cannot be divided over the {group} shards of rows; give multiples of {group}."
        )
    command.check_output(options.out)
    family, config, decoder, params = loaded(options.model, options.context + options.steps)
    policies = [
        (name, build_policy(name, budget, tau=TAU[family]))
        for name in options.policies
        for budget in ((1.0,) if name == "full" else options.budgets)
    ]
    for name, policy in policies:
        labelled = {f"{name} at budget {policy.budget:g}": policy}
        check_one_pass(labelled)
        check_policies(labelled, modalities(options.context)[0])
        check_layers(labelled, config.num_hidden_layers)
    inputs = group_prompt(options.context, config.vocab_size)
    measured = Measured(decoder, params, *inputs, options.steps, options.repeats, device_memory(options.memory))
    for name, policy in policies:
        yield from measured.rows(name, policy, options.batches)


def device_memory(given: float | None) -> int | None:
    """Bytes of a device that programs may use: as given in GiB, or as the device says, if it does."""
    if given is not None:
        return int(given * GIB)
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def table(rows: list[Row], options: Options) -> Table:
    """The rows for people."""
    devices = jax.devices()
    shown = Table(
        title=f"{options.model}, {options.context:,} tokens, {options.steps} decode steps, {len(devices)} x "
        f"{devices[0].device_kind}",
        caption="Rows that fit: beside the weights and the compiler's temporaries, by arithmetic.",
        caption_justify="left",
    )
    shown.add_column("policy")
    columns = ("budget", "batch", "prefill rows/s", "decode ms", "tokens/s", "MB of a row", "temp MB", "rows that fit")
    for name in columns:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row.policy,
            f"{row.budget:g}",
            str(row.batch),
            _shown(row.prefill_rows_per_second, ".3g"),
            row.problem or _shown(row.decode_ms, ".2f"),
            _shown(row.tokens_per_second, ",.1f"),
            _shown(row.row_bytes, ",.2f", 1e6),
            _shown(row.temporaries, ",.1f", 1e6),
            _shown(row.rows_that_fit, ","),
        )
    return shown


def _shown(number: float | None, form: str, unit: float | None = None) -> str:
    if number is None:
        return ""
    return format(number if unit is None else number / unit, form)


def run(options: Options) -> None:
    """Measures and prints.

    Raises:
        UserError: on any mistake in the options.
    """
    random = sizes(options.model)
    if random is None and "/" not in options.model and not Path(options.model).exists():
        known = ", ".join(("qwen2", *PRESETS))
        raise UserError(f"Unknown model {options.model!r}; give one of {known}, or the folder of a checkpoint.")
    kv_heads = random[1].num_key_value_heads if random else models.kv_heads(options.model)
    with options.devices.placed(kv_heads, options.model):
        _run(options)


def _run(options: Options) -> None:
    rows: list[Row] = []
    for row in measure(options):
        rows.append(row)
        if options.json:
            print(json.dumps(dataclasses.asdict(row)), flush=True)
        if options.out is not None and is_first():
            devices = jax.devices()
            about = {"options": dataclasses.asdict(options), "device": devices[0].device_kind, "devices": len(devices)}
            result = about | {"jax": jax.__version__, "rows": [dataclasses.asdict(row) for row in rows]}
            write_text(options.out, json.dumps(result, indent=1, default=str) + "\n")
    if not options.json:
        Console(width=140).print(table(rows, options))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 after a user's mistake."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.perf.throughput", description=__doc__)
    return command.run(lambda: run(options), devices=options.devices)


if __name__ == "__main__":
    sys.exit(main())

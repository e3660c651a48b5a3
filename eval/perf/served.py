"""A decoder at full size with random weights on one device, and the time and memory of each stage of serving it.

As a server would, one row is prefilled after the other, and the pruned caches are decoded as a batch. Here all rows of
a batch are one prompt, whose cache is repeated.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

import acckv_jax
from acckv_jax import CachePolicy, KVCache, Scored
from acckv_jax.attention import Implementation
from acckv_jax.generate import for_decoding
from eval.perf.bench import Bench, random_prompt
from eval.perf.compiled import needs_of
from eval.perf.plan import Preset
from eval.perf.timing import fastest
from models.decoder import Decoder, DecoderConfig
from models.layers.init import FastRngs, Params, abstract_params
from models.over_decoder import SINGLE, DecoderStep, with_single_layers
from models.placement import abstract_params_on


@functools.partial(jax.jit, static_argnames=("shape", "dtype", "spread"))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any, spread: float) -> jax.Array:
    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(key, shape[1:], dtype) * jnp.asarray(spread, dtype)

    return jax.lax.map(draw, jax.random.split(key, shape[0]))  # a slice at a time: random bits take room, too


def _abstract(config: DecoderConfig, dtype: Any) -> tuple[nnx.GraphDef, Params]:
    """On the current mesh, if there is one."""

    def make() -> Decoder:
        return Decoder(config, rngs=FastRngs(0), dtype=dtype)

    mesh = jax.sharding.get_mesh()
    return abstract_params(make) if mesh.empty else abstract_params_on(mesh, make)


def random_params(config: DecoderConfig, dtype: Any) -> Params:
    """Random parameters of a decoder: norms are 1, biases 0, kernels of unit gain.

    Each array is made on the default device, and put on the current mesh, if there is one, before the next is made.
    """
    _, shapes = _abstract(config, dtype)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))

    def make(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        key, name = next(keys), path[-1].key
        if name == "kernel":
            stack = x.shape if len(x.shape) == 3 else (1, *x.shape)
            drawn = _normal(key, stack, x.dtype, x.shape[-2] ** -0.5).reshape(x.shape)
        elif name == "embedding":
            drawn = _normal(key, x.shape, x.dtype, 0.02)
        else:
            drawn = jnp.full(x.shape, 0 if name == "bias" else 1, x.dtype)
        return drawn if x.sharding is None else jax.device_put(drawn, x.sharding)

    return with_single_layers(jax.tree_util.tree_map_with_path(make, shapes))


def decoder_of(config: DecoderConfig, dtype: Any, attention: Implementation | None = None) -> acckv_jax.Decoder:
    """A decoder as `acckv_jax` takes it."""
    graph, _ = _abstract(config, dtype)
    return acckv_jax.Decoder(DecoderStep(graph), config.num_hidden_layers, scans=True, attention=attention)


def repeated(cache: KVCache, rows: int) -> KVCache:
    """The cache of one row as a batch of equal ones, in buffers of its own."""
    count = len(cache.stacks)
    scored = Scored(cache, ((),) * count, ({},) * count, queries=(), window=0, complete=True)
    return acckv_jax.repeat_rows(scored, rows).cache


@dataclasses.dataclass(frozen=True)
class Timed:
    """One program.

    Attributes:
        seconds: of its fastest run.
        needs: bytes of its arguments (weights included), outputs and temporaries, by the compiler.
    """

    seconds: float
    needs: int


@dataclasses.dataclass(frozen=True)
class Served(Bench):
    """A decoder at full size and a prompt; what reads a row in full and prunes it is a `Bench`'s.

    Attributes:
        config: sizes of the decoder.
    """

    config: DecoderConfig

    @classmethod
    def of(
        cls,
        preset: Preset,
        params: Params,
        context: int,
        *,
        steps: int,
        repeats: int,
        attention: Implementation | None = None,
    ) -> Self:
        """A prompt of `context` random tokens for a preset with these parameters (see `random_params`)."""
        config = preset.decoder
        decoder = decoder_of(config, preset.dtype, attention)
        return cls(decoder, params, *random_prompt(context, config), steps, repeats, config)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters that a decode step reads: not a table of embeddings apart from the output head."""
        unread = {SINGLE} if self.config.tie_word_embeddings else {SINGLE, "tokens"}
        parts = [part for name, part in self.params.items() if name not in unread]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(parts))

    def prefill_pruned(self, policy: CachePolicy) -> tuple[jax.Array, KVCache, Timed]:
        """Logits and the cache of one row, each layer pruned before the next one runs."""
        given = self.params, self.tokens, self.prompt
        reserved = policy.reserved_slots(self.steps)
        program = acckv_jax.jitted.prefill.lower(self.decoder, *given, policy, reserved_slots=reserved).compile()
        (logits, cache), seconds = fastest(lambda: program(*given), self.repeats)
        return logits, cache, Timed(seconds, needs_of(program.memory_analysis()))

    def decode_batch(self, logits: jax.Array, cache: KVCache, policy: CachePolicy, rows: int) -> Timed:
        """A decode loop of `steps` steps over the cache of one row, repeated to a batch."""

        def fresh() -> tuple[Params, acckv_jax.DecodeState]:
            batch = for_decoding(self.decoder, repeated(cache, rows))
            return self.params, acckv_jax.start_decoding(logits.repeat(rows, axis=0), batch, jax.random.key(0))

        loop = policy.while_decoding()
        program = acckv_jax.jitted.decode.lower(self.decoder, *fresh(), loop, steps=self.steps).compile()
        _, seconds = fastest(program, self.repeats, fresh)
        return Timed(seconds, needs_of(program.memory_analysis()))

    def trace(self, policy: CachePolicy, rows: int, folder: Path) -> None:
        """Writes a trace of one prefill and one decode loop, for XProf or Perfetto."""
        reserved = policy.reserved_slots(self.steps)
        read = functools.partial(acckv_jax.jitted.prefill, self.decoder, self.params, self.tokens, self.prompt, policy)
        write = functools.partial(acckv_jax.jitted.decode, self.decoder, self.params, steps=self.steps)

        def once() -> None:
            logits, cache = jax.block_until_ready(read(reserved_slots=reserved))
            batch = for_decoding(self.decoder, repeated(cache, rows))
            state = acckv_jax.start_decoding(logits.repeat(rows, axis=0), batch, jax.random.key(0))
            jax.block_until_ready(write(state=state, policy=policy.while_decoding()))

        once()  # compiles
        with jax.profiler.trace(str(folder)):
            once()

"""What every audio-video model here is: one decoder, and what embeds media for it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.decoder import Attend, Decoder, DecoderConfig
from models.layers.init import FastRngs, Params, abstract_params


@dataclasses.dataclass(frozen=True)
class DecoderStep:
    """The `acckv_jax.StepFn` of a `models.decoder.Decoder`; equal graphs are equal steps, and share compiled programs.

    Attributes:
        graph: graph definition of the decoder.
    """

    graph: nnx.GraphDef

    def __call__(
        self,
        params: Any,
        inputs: Int[Array, "B T"] | Float[Array, "B T D"],
        positions: Int[Array, "B T"] | Int[Array, "A B T"],
        layers: tuple[Any, ...],
        attend: Attend,
        rows: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...]]:
        """Runs the decoder on token ids, or on embeddings where media are among them."""
        decoder = nnx.merge(self.graph, params)
        embeddings = inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else decoder.embed(inputs)
        hidden, layers = decoder(embeddings, positions, layers, attend)
        wanted = jax.vmap(lambda row, at: row[at][None])(hidden, rows)
        return decoder.logits(wanted)[:, 0], layers


@dataclasses.dataclass(frozen=True, eq=False)
class OverDecoder:
    """The part of `models.interface.AVModel` that follows from the decoder.

    Attributes:
        name: as given on the command line.
        decoder: sizes of the decoder.
        graph: graph definition of the whole module.
        all_params: its parameters, the decoder's below "decoder".
    """

    name: str
    decoder: DecoderConfig
    graph: nnx.GraphDef
    all_params: Params

    @property
    def step(self) -> DecoderStep:
        """The decoder for `acckv_jax`."""
        return _step(self.decoder)

    @property
    def params(self) -> Params:
        """The decoder's parameters."""
        return self.all_params["decoder"]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.decoder.num_hidden_layers

    @property
    def max_context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        return self.decoder.max_position_embeddings


@functools.cache
def _step(config: DecoderConfig) -> DecoderStep:
    return DecoderStep(abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))[0])

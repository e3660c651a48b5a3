"""What every audio-video model here is: one decoder, and what embeds media for it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from acckv_jax import bucket_length
from models.decoder import Attend, Decoder, DecoderConfig
from models.interface import EmbeddedPrompt
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

    def embed_text(self, ids: Sequence[int] | Int[np.ndarray, " T"]) -> EmbeddedPrompt:
        """Text of a prompt."""
        padded = np.zeros(bucket_length(len(ids)), np.int32)
        padded[: len(ids)] = ids
        return EmbeddedPrompt.of(_embed(self.step.graph, self.params, padded), np.zeros(len(ids), np.int32))

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return self.decoder.num_hidden_layers

    @property
    def max_context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        return self.decoder.max_position_embeddings


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, params: Params, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
    return nnx.merge(graph, params).embed(ids[None])[0]


@functools.cache
def _step(config: DecoderConfig) -> DecoderStep:
    return DecoderStep(abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))[0])

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

import acckv_jax
from acckv_jax.decoder import Attend
from models.decoder import Decoder, DecoderConfig
from models.interface import EmbeddedPrompt
from models.layers.init import FastRngs, Params, abstract_params
from models.layers.stacked import single_layers

SINGLE = "single_layers"
"""Key of the parameters of single layers beside the decoder's own."""


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
        caches: tuple[acckv_jax.Stack, ...],
        carry: Any,
        attend: Attend,
        logit_positions: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...], Any]:
        """Runs the decoder on token ids, or on embeddings where media are among them."""
        single = params.get(SINGLE)
        decoder = nnx.merge(self.graph, {name: x for name, x in params.items() if name != SINGLE})
        embeddings = inputs if jnp.issubdtype(inputs.dtype, jnp.floating) else decoder.embed(inputs)
        hidden, caches, carry = decoder(embeddings, positions, caches, carry, attend, single)
        wanted = jax.vmap(lambda row, at: row[at][None])(hidden, logit_positions)
        return decoder.logits(wanted)[:, 0], caches, carry


@dataclasses.dataclass(frozen=True, eq=False)
class OverDecoder:
    """The part of `models.interface.AVModel` that follows from the decoder.

    Attributes:
        name: as given on the command line.
        decoder_config: sizes of the decoder.
        graph: graph definition of the whole module.
        all_params: its parameters, the decoder's below "decoder".
    """

    name: str
    decoder_config: DecoderConfig
    graph: nnx.GraphDef
    all_params: Params

    @property
    def decoder(self) -> acckv_jax.Decoder:
        """The decoder as `acckv_jax` takes it."""
        return decoder_of(self.decoder_config)

    @property
    def params(self) -> Params:
        """The decoder's parameters; on a CPU also the views of its single layers that decoding reads."""
        return self._params

    @functools.cached_property
    def _params(self) -> Params:
        return with_single_layers(self.all_params["decoder"])

    def embed_text(self, ids: Sequence[int] | Int[np.ndarray, " T"]) -> EmbeddedPrompt:
        """Text of a prompt."""
        padded = np.zeros(acckv_jax.bucket_length(len(ids)), np.int32)
        padded[: len(ids)] = ids
        return EmbeddedPrompt.of(
            _embed(_step(self.decoder_config).graph, self.all_params["decoder"], padded), np.zeros(len(ids), np.int32)
        )

    @property
    def max_context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        return self.decoder_config.max_position_embeddings


def with_single_layers(params: Params) -> Params:
    """A decoder's parameters; on a CPU also the views of its single layers that decoding reads."""
    single = single_layers(params["layers"])
    return params if single is None else params | {SINGLE: single}


@functools.partial(jax.jit, static_argnums=0)
def _embed(graph: nnx.GraphDef, params: Params, ids: Int[Array, " T"]) -> Float[Array, "T D"]:
    return nnx.merge(graph, params).embed(ids[None])[0]


def decoder_of(config: DecoderConfig) -> acckv_jax.Decoder:
    """The decoder of a configuration as `acckv_jax` takes it."""
    return acckv_jax.Decoder(_step(config), config.num_hidden_layers, scans=True)


@functools.cache
def _step(config: DecoderConfig) -> DecoderStep:
    return DecoderStep(abstract_params(lambda: Decoder(config, rngs=FastRngs(0)))[0])

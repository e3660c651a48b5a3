"""What every audio-video model here is: one decoder, and what embeds media for it."""

import dataclasses
import functools

from flax import nnx

from models.decoder import Decoder, DecoderConfig
from models.interface import Keys, Params, define
from models.step import DecoderStep


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
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.decoder.num_hidden_layers

    @property
    def context(self) -> int:
        """Most tokens that the decoder can tell apart."""
        return self.decoder.max_position_embeddings


@functools.cache
def _step(config: DecoderConfig) -> DecoderStep:
    return DecoderStep(define(lambda: Decoder(config, rngs=Keys(0)))[0])

"""A decoder as `acckv_jax` takes it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.decoder import Attend


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

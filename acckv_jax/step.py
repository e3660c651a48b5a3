"""What the library asks of a decoder."""

from collections.abc import Callable
from typing import Any, Protocol

from jax import Array
from jaxtyping import Float, Int

from acckv_jax.cache import LayerCache

Attend = Callable[[int, Array, Array, Array, Any], tuple[Array, LayerCache]]


class StepFn(Protocol):
    """A decoder: what the library asks of a model.

    It computes q, k and v of each layer (rotated), calls `attend(layer number, q [B,T,N,H], k [B,T,K,H], v [B,T,K,H],
    cache of the layer) -> (output [B,T,N,H], next cache of the layer)` once per layer in order, and returns the logits
    of one row per sequence and the caches. It must be hashable by value, or the same object from call to call.
    """

    def __call__(
        self,
        params: Any,
        inputs: Any,
        positions: Int[Array, "B T"] | Int[Array, "A B T"],
        layers: tuple[Any, ...],
        attend: Attend,
        rows: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], tuple[LayerCache, ...]]:
        """Runs the decoder.

        Args:
            params: the model's parameters.
            inputs: token ids [B, T], or whatever else the caller of `prefill` passed (embeddings, for instance).
            positions: rotary positions of the T tokens.
            layers: one entry per layer, to be handed to `attend`.
            attend: attention over the cache.
            rows: for each sequence, which of its T tokens the logits are wanted of.
        """
        ...

"""The protocol that a decoder follows."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from jax import Array
from jaxtyping import Float, Int

from acckv_jax.attention import Implementation
from acckv_jax.stacks import Stack

Attend = Callable[..., tuple[Array, Any, Any]]
"""`attend(layer, q [B,T,N,H], k [B,T,K,H], v [B,T,K,H], cache, carry, **inputs) -> (output [B,T,N,H], cache, carry)`.

`layer` is the layer's number, a Python int or a traced one. `cache` is what the decoder was handed for this layer, the
returned one is what it hands back for it. `carry` passes from layer to layer. `inputs` is optional and serves policies
that ask for more than attention (`CachePolicy.needs`): `hidden_states` [B, T, D] the layer's input, `unrotated_q`
[B, T, N, H] the queries before rotation, `output_weights` [N, H, D] the output projection W_O.
"""


class StepFn(Protocol):
    """A decoder's forward pass, with attention left to the caller.

    It computes q, k and v of each layer (rotated), calls `attend` once per layer in order, and returns the logits of
    one row per sequence. It must be hashable by value, or the same object in every call.

    Example:
        An `attend` of one's own, which counts layers where the library would read and write caches.

        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> def attend(layer, q, k, v, cache, carry, **inputs):
        ...     return q, cache, carry + 1
        >>> last = jnp.array([63])
        >>> logits, caches, carry = decoder.step(params, inputs, jnp.arange(64)[None], (None, None), 0, attend, last)
        >>> carry
        2
    """

    def __call__(
        self,
        params: Any,
        inputs: Any,
        positions: Int[Array, "B T"] | Int[Array, "A B T"],
        caches: tuple[Any, ...],
        carry: Any,
        attend: Attend,
        logit_positions: Int[Array, " B"],
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...], Any]:
        """Runs the decoder.

        Args:
            params: the model's parameters.
            inputs: token ids [B, T], or whatever else the caller passed (embeddings, for instance).
            positions: rotary positions of the T tokens.
            caches: one entry per layer, for `attend`; for decoders that scan, one `Stack` per group of layers.
            carry: for `attend` of the first layer; each layer hands it to the next.
            attend: attention over the cache.
            logit_positions: for each sequence, which of its T tokens the logits are wanted of.

        Returns:
            Logits [B, V], what `attend` returned for each layer (or stack), and the carry of the last layer.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder as the library takes it. It is hashable, so it can be a static argument of jit.

    Attributes:
        step: the forward pass.
        num_layers: how many layers call `attend`.
        scans: whether `step` can run layers in a scan. Its `caches` are then `Stack`s, in order, and it returns one
            entry for each of them; `run_layers` does that.
        attention: the implementation with which prompts attend (see `acckv_jax.attention.attend`); by default the one
            for the platform that a program is compiled for.

    Example:
        >>> import acckv_jax as kv
        >>> def step(params, inputs, positions, caches, carry, attend, logit_positions):
        ...     x = params["embed"][inputs][:, :, None]  # one head
        ...     out, cache, carry = attend(0, x, x, x, caches[0], carry)
        ...     rows = jax.vmap(lambda states, row: states[row])(out[:, :, 0], logit_positions)
        ...     return rows @ params["embed"].T, (cache,), carry
        >>> kv.Decoder(step, num_layers=1).num_layers
        1
    """

    step: StepFn
    num_layers: int
    scans: bool = False
    attention: Implementation | None = None

    def run(
        self,
        params: Any,
        inputs: Any,
        positions: Array,
        stacks: tuple[Stack, ...],
        carry: Any,
        attend: Attend,
        logit_positions: Array,
    ) -> tuple[Float[Array, "B V"], tuple[Any, ...], Any]:
        """`step`, over stacks if it scans, and else over the entries of single layers."""
        single = (stack.part(i, 1).entries for stack in stacks for i in range(stack.count))
        caches = stacks if self.scans else tuple(single)
        found = self.step(params, inputs, positions, caches, carry, attend, logit_positions)
        if not isinstance(found, tuple) or len(found) != 3 or len(found[1]) != len(caches):
            raise ValueError(
                f"a decoder's step returns logits, {len(caches)} caches (what attend returned for each) and the carry."
            )
        return found

    def __post_init__(self) -> None:
        if not isinstance(self.num_layers, int) or self.num_layers < 1:
            raise ValueError(f"num_layers is how many layers call attend, at least 1, not {self.num_layers!r}.")


def check_decoder(decoder: Any) -> None:
    """Checks that a decoder is one.

    Raises:
        ValueError: if it is, for instance, the step function alone.
    """
    if not isinstance(decoder, Decoder):
        raise ValueError(f"a decoder is Decoder(step, num_layers=...), not {decoder!r}.")

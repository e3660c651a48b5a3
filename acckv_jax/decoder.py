"""The protocol that a decoder follows."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from acckv_jax.attention import Implementation
from acckv_jax.stacks import Stack

Attend = Callable[..., tuple[Array, Any, Any]]
"""`attend(layer, q [B,T,N,H], k [B,T,K,H], v [B,T,K,H], cache, carry, **inputs) -> (output [B,T,N,H], cache, carry)`.

`layer` is the layer's number, a Python int or a traced one. `cache` is what the decoder was handed for this layer, the
returned one is what it hands back for it. `carry` passes from layer to layer. `inputs` is optional and serves policies
that ask for more than attention (`CachePolicy.needs`): `hidden_states` [B, T, D] the layer's input, `unrotated_q`
[B, T, N, H] the queries before rotation, `rotary_frequencies` [H/2] the radians per position by which the pairs
(i, i + H/2) of a head are rotated, `output_weights` [N, H, D] the output projection W_O.
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
        num_layers: how many layers call `attend`. In a scan over stacked parameters another number goes unnoticed.
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
        """`step`, over stacks if it scans, and else over the entries of single layers.

        Raises:
            ValueError: if the stacks are of another number of layers, or the step takes or returns anything else than
                `StepFn` says.
        """
        layers = sum(stack.count for stack in stacks)
        if layers != self.num_layers:
            raise ValueError(f"the cache has {layers} layers, and the decoder {self.num_layers}; they must be as many.")
        single = (stack.part(i, 1).entries for stack in stacks for i in range(stack.count))
        caches = stacks if self.scans else tuple(single)
        numbers, returned, attending = set(), [], False

        def watched(
            layer: int | Array, q: Array, k: Array, v: Array, cache: Any, carry: Any, **given: Array
        ) -> tuple[Array, Any, Any]:
            nonlocal attending
            _check_shapes(q, k, v)
            if isinstance(cache, Stack):
                raise ValueError(f"attend was called with a whole Stack as a layer's cache: {self._kind}")
            numbers.add(layer if isinstance(layer, int) else None)
            attending = True
            out, cache, carry = attend(layer, q, k, v, cache, carry, **given)
            attending = False
            returned.append(jax.tree.structure(cache))
            return out, cache, carry

        try:
            found = self.step(params, inputs, positions, caches, carry, watched, logit_positions)
        except (AttributeError, TypeError, IndexError) as error:
            if attending or not _MISTAKEN.search(str(error)):  # else an error of the policy
                raise
            raise ValueError(f"the decoder's step failed with {error!r}: {self._kind}") from error
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError("a decoder's step returns logits, a tuple of caches and the carry.")
        logits, after, _ = found
        if not isinstance(after, tuple | list) or len(after) != len(caches):
            came = f"{len(after)} entries" if isinstance(after, tuple | list) else f"a {type(after).__name__}"
            raise ValueError(f"a decoder's step returned {came} as its caches and not {len(caches)}: {self._kind}")
        if any(jax.tree.structure(one) not in returned for one in after):
            raise ValueError("a decoder's step returned caches that are not what attend returned for them.")
        if not self.scans and None not in numbers and len(numbers) != len(caches):
            raise ValueError(
                f"the step calls attend for {len(numbers)} layers, and its num_layers is {self.num_layers}."
            )
        rows = logit_positions.shape[0]
        if jnp.ndim(logits) != 2 or logits.shape[0] != rows:
            raise ValueError(
                f"a decoder's step returns logits [B, V] of one row for each of {rows} sequences, those at "
                f"logit_positions, and not {list(jnp.shape(logits))}."
            )
        return found

    @property
    def _kind(self) -> str:
        """What the caches are, for messages about a step that takes them for something else."""
        if self.scans:
            return (
                "a decoder with scans=True gets one Stack for each group of layers and returns one entry for each "
                "(see run_layers); for a Python loop over layers set scans=False."
            )
        return (
            f"a decoder with scans=False gets {self.num_layers} caches (num_layers) and returns as many; one that "
            "takes them as stacks, or by run_layers, needs scans=True."
        )

    def __post_init__(self) -> None:
        if not callable(self.step):
            raise ValueError(f"step is a function that runs the decoder, not {self.step!r}.")
        if not isinstance(self.scans, bool):
            raise ValueError(f"scans is True or False, not {self.scans!r}.")
        if not isinstance(self.num_layers, int) or self.num_layers < 1:
            raise ValueError(f"num_layers is how many layers call attend, at least 1, not {self.num_layers!r}.")


_MISTAKEN = re.compile(
    r"'(Room|NoneType|LayerCache|tuple)' object has no attribute '(first|count|entries|part)'|'Stack' object|"
    r"tuple index out of range"
)
"""Errors of a step that takes its caches for something else."""


def _check_shapes(q: Array, k: Array, v: Array) -> None:
    """Checks the arguments of `attend` against each other.

    Raises:
        ValueError: naming the shapes.
    """
    of_q, of_k, of_v = (list(jnp.shape(x)) for x in (q, k, v))
    if len(of_q) == len(of_k) == 4 and of_k == of_v:
        (*tokens, heads, size), (*key_tokens, kv_heads, key_size) = of_q, of_k
        if tokens == key_tokens and size == key_size and kv_heads and heads % kv_heads == 0:
            return
    raise ValueError(
        "attend takes q [B, T, N, H], k and v [B, T, K, H], with N a multiple of K, and tokens before heads; got "
        f"{of_q}, {of_k}, {of_v}."
    )


def check_decoder(decoder: Any) -> None:
    """Checks that a decoder is one.

    Raises:
        ValueError: if it is, for instance, the step function alone.
    """
    if not isinstance(decoder, Decoder):
        raise ValueError(f"a decoder is Decoder(step, num_layers=...), not {decoder!r}.")

"""A prompt that was read in full, with what policies will prune it by."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from acckv_jax.cache import KVCache
from acckv_jax.queries import QuerySet

TOKENWISE = ("hidden_states", "unrotated_q")
"""Inputs of policies that have one entry per token; the others are parameters of the layer."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scored:
    """A prompt (or its beginning) in full, with the statistics that policies will prune by.

    Attributes:
        cache: every token, with padding between chunks.
        sums: per stack, for each of `queries`: column sums [B, K, S], or of several layers [n, B, K, S].
        inputs: per stack, what policies need beside keys, values and attention, by name, aligned with the slots.
        queries: whose sums they are (static).
        window: trailing tokens that must come in one chunk (static).
        complete: whether this is the whole prompt (static).

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, scored = kv.jitted.score(decoder, params, inputs, prompt, (kv.H2O(), kv.SnapKV(window_size=8)))
        >>> scored.attention_sums(kv.QuerySet(last=8))[0].shape
        (1, 2, 64)
    """

    cache: KVCache
    sums: tuple[tuple[Float[Array, "B K S"], ...], ...]
    inputs: tuple[dict[str, Array], ...]
    queries: tuple[QuerySet, ...] = dataclasses.field(metadata={"static": True})
    window: int = dataclasses.field(metadata={"static": True})
    complete: bool = dataclasses.field(metadata={"static": True})

    def attention_sums(self, queries: QuerySet) -> tuple[Float[Array, "B K S"], ...]:
        """The column sums of one query set, per layer.

        Raises:
            ValueError: if the prompt was not scored for it.
        """
        if queries not in self.queries:
            raise ValueError(f"the prompt was not scored for {queries}, only for {listed(self.queries)}.")
        at = self.queries.index(queries)
        several = zip(self.cache.stacks, (sums[at] for sums in self.sums), strict=True)
        return tuple(one for stack, sums in several for one in (sums if stack.is_stack else (sums,)))


def repeat_rows(scored: Scored, times: int) -> Scored:
    """A prompt of one row as a batch of `times` equal rows, so that as many questions can follow it at once.

    Raises:
        ValueError: if the prompt has more than one row, or `times` is below 1.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, scored = kv.jitted.score(decoder, params, inputs, prompt, (kv.H2O(), kv.SnapKV(window_size=8)))
        >>> kv.repeat_rows(scored, 3).cache.length.tolist()
        [64, 64, 64]
    """
    if times < 1:
        raise ValueError(f"times must be at least 1, not {times}.")
    rows = scored.cache.length.shape[0]
    if rows != 1:
        raise ValueError(f"only a prompt of one row can be repeated, and this one has {rows}.")

    def repeated(x: Array, axis: int = 0) -> Array:
        if times == 1 or x.ndim <= axis:
            return jnp.copy(x)  # of its own, so that donating it does not end `scored`
        return jnp.concatenate([x] * times, axis)

    stacks, sums, inputs = [], [], []
    for one, own_sums, own_inputs in zip(scored.cache.stacks, scored.sums, scored.inputs, strict=True):
        in_stack = functools.partial(repeated, axis=int(one.is_stack))
        stacks.append(jax.tree.map(in_stack, one))
        sums.append(jax.tree.map(in_stack, own_sums))
        inputs.append({name: in_stack(x) if name in TOKENWISE else x for name, x in own_inputs.items()})
    cache = KVCache(tuple(stacks), repeated(scored.cache.length), repeated(scored.cache.delta))
    return dataclasses.replace(scored, cache=cache, sums=tuple(sums), inputs=tuple(inputs))


def listed(sets: tuple[Any, ...]) -> str:
    """Query sets or names of inputs, for messages."""
    return ", ".join(map(str, sets)) or "none"

"""Layers in stacks: what a decoder runs in one scan, so that a program is as large as one layer.

A stack of one layer is a plain call: a decoder that is not scanned is the case of as many stacks as layers.
"""

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from acckv_jax.cache import KVCache, LayerCache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """Consecutive layers that can run in one scan.

    Attributes:
        entries: for `attend`: the entry of a single layer, or those of several layers along one more axis in front.
        first: number of the first layer (static).
        count: how many layers there are (static).

    Example:
        >>> import acckv_jax as kv
        >>> kv.Stack(jnp.array([[1, 2], [3, 4], [5, 6]]), first=4, count=3).part(1, 2).entries.tolist()
        [[3, 4], [5, 6]]
    """

    entries: Any
    first: int = dataclasses.field(metadata={"static": True})
    count: int = dataclasses.field(metadata={"static": True})

    def part(self, start: int, count: int) -> "Stack":
        """Some of the layers, from the one that is `start` after the first."""
        if count == self.count:
            return self
        at = start if count == 1 else slice(start, start + count)
        return Stack(jax.tree.map(operator.itemgetter(at), self.entries), self.first + start, count)


Layer = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]
"""`layer(x, number, cache, carry) -> (x, cache, carry)`; the number may be traced."""


def run_layers(layer: Layer, x: Any, stacks: tuple[Stack, ...], carry: Any) -> tuple[Any, tuple[Any, ...], Any]:
    """Runs all layers of a decoder that scans: every stack of several layers as one `jax.lax.scan`, others by a call.

    Args:
        layer: runs the layer of a number on hidden states, and calls `attend` with that number, the cache and the
            carry. It takes its parameters by the number: of stacked ones, `jax.tree.map(lambda p: p[number], params)`.
        x: hidden states, or any pytree that layers hand on.
        stacks: as `StepFn` is given them.
        carry: likewise.

    Returns:
        The last layer's hidden states, what `attend` returned for each stack, and the last carry.

    Example:
        >>> import acckv_jax as kv
        >>> def layer(x, number, cache, carry):
        ...     return x + number, cache * 2, carry
        >>> stacks = kv.Stack(jnp.array([1, 2]), first=0, count=2), kv.Stack(jnp.array(5), first=2, count=1)
        >>> x, caches, carry = kv.run_layers(layer, jnp.array(0), stacks, ())
        >>> int(x), caches[0].tolist(), int(caches[1])
        (3, [2, 4], 10)
    """
    after = []
    for stack in stacks:
        if stack.count == 1:
            x, cache, carry = layer(x, stack.first, stack.entries, carry)
        else:

            def body(state: tuple[Any, Any], given: tuple[Array, Any]) -> tuple[tuple[Any, Any], Any]:
                x, cache, carry = layer(state[0], given[0], given[1], state[1])
                return (x, carry), cache

            numbers = stack.first + jnp.arange(stack.count, dtype=jnp.int32)
            (x, carry), cache = jax.lax.scan(body, (x, carry), (numbers, stack.entries))
        after.append(cache)
    return x, tuple(after), carry


def grouped(kinds: Sequence[Any], *, scans: bool) -> Iterator[tuple[int, int, Any]]:
    """First layer, number of layers and kind of each group of neighbours of one kind, or of each layer by itself."""
    first = 0
    for kind, group in itertools.groupby(kinds):
        count = len(list(group))
        for start, size in [(first, count)] if scans else [(first + i, 1) for i in range(count)]:
            yield start, size, kind
        first += count


def stacks_of(entries: Sequence[LayerCache], *others: Sequence[Any]) -> tuple[Stack, ...]:
    """The stacks of a cache, each with what belongs to it in `others`: entries are tuples (cache, *others)."""
    firsts = itertools.accumulate((one.num_layers for one in entries), initial=0)
    each = zip(firsts, entries, *others, strict=False)
    return tuple(Stack(tuple(parts), first, parts[0].num_layers) for first, *parts in each)


def numbered(cache: KVCache) -> Iterator[tuple[LayerCache, int | Array]]:
    """Every stack of a cache, and the numbers of its layers: an array for several."""
    for stack in stacks_of(cache.stacks):
        (layer,) = stack.entries
        several = stack.first + jnp.arange(stack.count, dtype=jnp.int32)
        yield layer, several if layer.is_stack else stack.first

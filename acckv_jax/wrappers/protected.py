"""Protection of the first and last tokens, for any policy."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.selection import top_k_mask
from acckv_jax.wrappers.base import Wrapper, inside


@dataclasses.dataclass(frozen=True)
class Protected(Wrapper):
    """Never drops the first and the last tokens; the inner policy chooses among the others.

    The protected tokens count in the budget. While decoding, the last tokens are the last generated ones.

    Attributes:
        inner: the policy inside.
        first: tokens kept at the beginning of the sequence.
        last: tokens kept at its end.

    Example:
        >>> import acckv_jax as kv
        >>> kv.Protected(kv.Knorm(budget=0.2), first=4, last=16)
        Protected(inner=Knorm(budget=0.2, evict_every=0), first=4, last=16)
    """

    first: int = 4
    last: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first < 0 or self.last < 0:
            raise ValueError(f"first and last are numbers of tokens, at least 0, not {self.first} and {self.last}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The protected tokens must fit beside what the inner policy cannot do without."""
        need, _ = self.inner.needed_slots(counts)
        name = type(self.inner).__name__
        return need + self.first + self.last, f"{self.first} first and {self.last} last tokens beside {name}'s own need"

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As the inner policy, among the other tokens."""
        return super().compress(layer, self._protect(layer, context))

    def evict(self, layer: LayerCache, context: Context) -> LayerCache:
        """As the inner policy, among the other tokens."""
        return super().evict(layer, self._protect(layer, context))

    def _protect(self, layer: LayerCache, context: Context) -> Context:
        ends = (layer.index < self.first) | (layer.index >= (context.length - self.last)[:, None, None])
        keep = layer.valid & ends
        chosen = context.chosen
        if chosen is not None:  # by a wrapper further out, which knew nothing of these tokens
            chosen = top_k_mask(jnp.where(keep, jnp.inf, 0.0), layer.valid & (keep | chosen), context.budget)
        return dataclasses.replace(context, keep=keep if context.keep is None else context.keep | keep, chosen=chosen)


def check_selects_alone(wrapper: Wrapper, *, beside: tuple[type[Wrapper], ...] = ()) -> None:
    """Checks that a wrapper which selects slots by scores overrules no other selection.

    Args:
        wrapper: the wrapper.
        beside: wrappers whose own selection it takes into account.

    Raises:
        ValueError: if there is something inside that protects slots, or selects them by a rule of its own.
    """
    name = type(wrapper).__name__
    for policy in inside(wrapper):
        if isinstance(policy, Protected):
            raise ValueError(f"{name} selects slots and must know the protected ones: write Protected({name}(...)).")
        if type(policy).select not in (CachePolicy.select, Wrapper.select) and not isinstance(policy, beside):
            other = type(policy).__name__
            raise ValueError(f"{name} would overrule how {other} selects slots: use one of them without the other.")

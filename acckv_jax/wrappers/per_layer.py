"""A budget of its own for every layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from acckv_jax.budget import Budget, few_levels
from acckv_jax.policy import CachePolicy
from acckv_jax.wrappers.base import Wrapper


@dataclasses.dataclass(frozen=True)
class PerLayer(Wrapper):
    """The inner policy with another budget in each layer; every layer allocates what its own budget needs.

    Capacities are rounded up to at most `levels` different ones, so that few programs are compiled. Valid slots follow
    the budgets exactly; the bytes count what is allocated.

    Attributes:
        inner: the policy inside, whose own budget the shares multiply.
        shares: for each layer, its budget over the mean budget, such as (1.5, 1.0, 0.5).
        levels: most different capacities.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.PerLayer(kv.SnapKV(budget=0.2), shares=(1.5, 1.0, 0.5))
        >>> [policy.capacity(1000, layer) for layer in range(3)]
        [300, 200, 100]
    """

    shares: tuple[float, ...] = ()
    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shares", tuple(self.shares))
        if not self.shares or not all(x > 0 for x in self.shares):
            raise ValueError(f"shares are one positive number per layer, not {self.shares}.")
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, not {self.levels}.")
        for layer in range(len(self.shares)):
            self._of_layer(layer)  # a budget out of range is an error at once

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Those of all layers."""
        every = (budget for layer in range(len(self.shares)) for budget in self._of_layer(layer).budgets)
        return tuple(dict.fromkeys(every))

    def capacity(self, bucket: int, layer: int) -> int:
        """The capacity of the layer's budget, rounded up to one of few levels."""
        capacities = tuple(self._of_layer(i).capacity(bucket, i) for i in range(len(self.shares)))
        return few_levels(capacities, self.levels)[layer]

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        """[B] slots that each row may hold in the layer, whose number may be traced."""
        if not isinstance(layer, jax.Array):
            return self._of_layer(layer).row_budget(length, bucket, layer)
        total = jnp.zeros_like(length)
        for number in range(len(self.shares)):
            own = self._of_layer(number).row_budget(length, bucket, number)
            total = jnp.where(layer == number, own, total)
        return total

    def check_layers(self, num_layers: int) -> None:
        """There must be one share for each layer."""
        super().check_layers(num_layers)
        if num_layers != len(self.shares):
            raise ValueError(
                f"PerLayer has shares for {len(self.shares)} layers, and the decoder has {num_layers}; "
                "give one for each."
            )

    def _of_layer(self, layer: int) -> CachePolicy:
        """The inner policy with the layer's budget."""
        return _with_share(self.inner, self.shares[layer])


@functools.cache
def _with_share(inner: CachePolicy, share: float) -> CachePolicy:
    budget: Budget = inner.budget * share if inner.is_fraction else max(1, round(inner.budget * share))
    if isinstance(budget, float) and budget > 1.0:
        raise ValueError(f"a share of {share} of the budget {inner.budget} is more than the prompt: {budget:g}.")
    return inner.with_budget(budget)

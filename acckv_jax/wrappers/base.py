"""The base of all wrappers: policies around other policies."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import Budget, TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context, check_options, scores_of
from acckv_jax.queries import QuerySet


@dataclasses.dataclass(frozen=True)
class Wrapper(CachePolicy):
    """A policy that changes another one. This base class changes nothing.

    A new wrapper overrides what it changes, most often `token_scores` or `select`: what they return takes the place of
    the inner policy's own, unless a wrapper further out has said it already (`context.scores`, `context.chosen`). One
    that changes eviction too overrides `eviction_scores`, which for wrappers is not `token_scores` by default: what the
    inner policy scores by between decode steps may be something else.

    Attributes:
        inner: the policy inside. Budget and `evict_every` are its own.

    Example:
        >>> import acckv_jax as kv
        >>> class Reversed(kv.Wrapper):
        ...     def token_scores(self, layer, context):
        ...         return -self.inner.token_scores(layer, context)
        >>> Reversed(kv.Knorm(budget=0.2)).capacity(1000, layer=0)
        200
    """

    budget: Budget = dataclasses.field(init=False, repr=False)
    evict_every: int = dataclasses.field(init=False, repr=False)
    inner: CachePolicy

    def __post_init__(self) -> None:
        if not isinstance(self.inner, CachePolicy):
            raise ValueError(f"{type(self).__name__} wraps a policy such as SnapKV(budget=0.2), not {self.inner!r}.")
        check_options(self)
        object.__setattr__(self, "budget", self.inner.budget)
        object.__setattr__(self, "evict_every", self.inner.evict_every)
        object.__setattr__(self, "is_fraction", self.inner.is_fraction)

    # As the inner policy, also where policies have class variables.

    @property
    def can_evict(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.can_evict

    @property
    def log_multiplicity(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.log_multiplicity

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.needs

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        return self.inner.queries

    def queries_in(self, layer: int) -> tuple[QuerySet, ...]:
        """As the inner policy, or all of this wrapper's own `queries` if it names others."""
        own = type(self).queries is not Wrapper.queries
        return self.queries if own else self.inner.queries_in(layer)

    @property
    def mass_queries(self) -> QuerySet | None:
        return self.inner.mass_queries

    @property
    def recent_queries(self) -> int:
        return self.inner.recent_queries

    @property
    def window(self) -> int:
        """As the inner policy's, or this wrapper's own if it names other `queries`."""
        return max(self.inner.window, super().window)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return self.inner.budgets

    def check_layers(self, num_layers: int) -> None:
        self.inner.check_layers(num_layers)

    def for_layers(self, num_layers: int) -> Self:
        """The same wrapper around the inner policy for so many layers."""
        self.check_layers(num_layers)
        return dataclasses.replace(self, inner=self.inner.for_layers(num_layers))

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        return self.inner.needed_slots(counts)

    def capacity(self, bucket: int, layer: int) -> int:
        return self.inner.capacity(bucket, layer)

    def reserved_slots(self, new_tokens: int) -> int:
        return self.inner.reserved_slots(new_tokens)

    def with_budget(self, budget: Budget) -> Self:
        """The same wrapper around the inner policy with another budget."""
        return dataclasses.replace(self, inner=self.inner.with_budget(budget))

    def while_decoding(self) -> CachePolicy:
        """The whole wrapper if it evicts, else what the inner policy needs."""
        return self if self.evict_every else self.inner.while_decoding()

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        return self.inner.row_budget(length, bucket, layer)

    def init_carry(self, modality: Int[Array, "B S"]) -> Any:
        return self.inner.init_carry(modality)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        return self.inner.token_scores(layer, context)

    def eviction_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        return self.inner.eviction_scores(layer, context)

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        return self.inner.select(scores, layer, context)

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """As the inner policy, by this wrapper's scores and selection if it has its own."""
        return self.inner.compress(layer, self._with_own(layer, context, "token_scores"))

    def evict(self, layer: LayerCache, context: Context) -> LayerCache:
        """As the inner policy, by this wrapper's scores and selection if it has its own."""
        return self.inner.evict(layer, self._with_own(layer, context, "eviction_scores"))

    def _with_own(self, layer: LayerCache, context: Context, scores: str) -> Context:
        """The context with this wrapper's own scores and selection, where no wrapper further out has given any."""
        if context.scores is None and self._overrides(scores):
            context = dataclasses.replace(context, scores=scores_of(self, scores, layer, context))
        if context.chosen is None and self._overrides("select"):
            by = scores_of(self, scores, layer, context)
            context = dataclasses.replace(context, chosen=self.select(by, layer, context))
        return context

    def _overrides(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(Wrapper, method)


def inside(wrapper: Wrapper) -> Iterator[CachePolicy]:
    """The policies inside a wrapper, from the outermost to the one that is no wrapper."""
    policy: CachePolicy = wrapper
    while isinstance(policy, Wrapper):
        policy = policy.inner
        yield policy

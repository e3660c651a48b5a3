"""Eviction while decoding, for policies that have a rule for it."""

import dataclasses

from acckv_jax.wrappers.base import Wrapper


@dataclasses.dataclass(frozen=True)
class EvictEvery(Wrapper):
    """The inner policy, which prunes again after every `steps` decode steps, at a fixed capacity.

    The cache needs `policy.reserved_slots(new_tokens)` free slots: eviction comes when they are used up.

    Attributes:
        inner: the policy inside; it must be able to evict.
        steps: decode steps between two prunes.

    Raises:
        ValueError: if `steps` is below 1, or the policy has no rule for pruning between decode steps.

    Example:
        >>> import acckv_jax as kv
        >>> kv.EvictEvery(kv.Knorm(budget=256), steps=32).reserved_slots(new_tokens=1000)
        32
    """

    steps: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 decode step, not {self.steps}.")
        if not self.inner.can_evict:
            raise ValueError(
                f"{type(self.inner).__name__} has no rule for pruning between decode steps (its can_evict is False)."
            )
        object.__setattr__(self, "evict_every", self.steps)

    def reserved_slots(self, new_tokens: int) -> int:
        """As many as steps, or tokens if they are fewer."""
        return min(self.steps, new_tokens)

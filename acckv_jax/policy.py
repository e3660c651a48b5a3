"""What a cache policy is.

A policy is a frozen dataclass of options with pure methods. Being hashable by value it is a static argument of jitted
functions, and two equal policies share one compiled program; a tuple of closures would compile anew for each.
"""

import dataclasses
import math
import types
from typing import Any, ClassVar, Literal, get_args, get_origin

import jax
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.attention import RowWeights
from acckv_jax.budget import Budget, TokenCounts, check_budget, check_slots, row_slots, slots_of
from acckv_jax.cache import LayerCache, take_slots
from acckv_jax.modality import Modality
from acckv_jax.selection import chosen_slots


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """The query rows of a chunk of prompt.

    Attributes:
        index: [B, T] token indices.
        modality: [B, T] ids.
        valid: [B, T] false for padding.
        total: [B] tokens of the whole prompt; a very large number while more chunks are to come.
    """

    index: Int[Array, "B T"]
    modality: Int[Array, "B T"]
    valid: Bool[Array, "B T"]
    total: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class CachePolicy:
    """Base of all policies: keeps everything, asks for no statistics.

    A new policy overrides `row_weights` (which attention it wants summed) and `choose` (which tokens it keeps; or
    `after_prefill`, if it also changes them), and `evict` if it can prune again while decoding. All methods but `check`
    and `capacity` run inside jit.

    Attributes:
        budget: fraction of the prompt (float) or number of slots (int) kept per layer, row and KV head.
        every: decode steps between two prunes, for which there is room; 0: decoding never prunes.
        is_fraction: whether the budget is a fraction. 1 and 1.0 are equal, and so would be policies that keep one slot
            and everything, for which jit must not take the same program.
    """

    budget: Budget = 1.0
    every: int = 0
    is_fraction: bool = dataclasses.field(init=False, repr=False, default=True)

    window: ClassVar[int] = 0
    """Trailing rows of the prompt that must come in one chunk, because their weights depend on the prompt's length."""
    log_multiplicity: ClassVar[bool] = False
    """Whether decoding adds log(multiplicity) to the logits of merged slots."""
    tracks_mass: ClassVar[bool] = False
    """Whether decoding adds each step's attention to `LayerCache.mass`."""

    def __post_init__(self) -> None:
        check_budget(self.budget)
        object.__setattr__(self, "is_fraction", isinstance(self.budget, float))
        for option in dataclasses.fields(self):
            if option.init and option.name != "budget":
                check_option(option.name, getattr(self, option.name), option.type)
        if self.every < 0:
            raise ValueError(f"every is a number of decode steps, or 0 for no pruning in between, not {self.every}.")
        if self.every and type(self).evict is CachePolicy.evict:
            raise ValueError(f"{type(self).__name__} has no rule for pruning between decode steps; use every=0.")

    def check(self, counts: TokenCounts) -> None:
        """Checks the budget against a prompt, on the host, before anything is compiled.

        Raises:
            ValueError: naming the smallest budget that would do.
        """
        check_slots(self.budget, counts, 1, "a row needs")

    def capacity(self, bucket: int) -> int:
        """Slots that a layer allocates for a prompt padded to `bucket` tokens."""
        return max(1, slots_of(self.budget, bucket))

    def decode_room(self, new_tokens: int) -> int:
        """Slots to allocate for `new_tokens` tokens of decoding."""
        return min(self.every, new_tokens) if self.every else new_tokens

    def row_weights(self, rows: Rows) -> RowWeights | None:
        """Weights of the chunk's rows in the column sums that `after_prefill` receives; None for no sums."""
        return None

    def after_prefill(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        capacity: int,
        index: Int[Array, ""],
    ) -> LayerCache:
        """Prunes one layer once its prompt is complete.

        Args:
            layer: every token of the prompt, in time order, with padding anywhere.
            sums: the column sums asked for; M = 0 if none were.
            length: [B] tokens of the prompt.
            capacity: slots of the result (static).
            index: number of the layer.

        Returns:
            A layer of `capacity` slots, its `budget` set.
        """
        budget = self.row_budget(length, layer.slots)
        return keep(layer, self.choose(layer, sums, length, budget, index), budget, capacity)

    def choose(
        self,
        layer: LayerCache,
        sums: Float[Array, "M B K S"],
        length: Int[Array, " B"],
        budget: Int[Array, " B"],
        index: Int[Array, ""],
    ) -> Bool[Array, "B K S"]:
        """The tokens of the prompt to keep, `budget` [B] many; the other arguments are those of `after_prefill`."""
        return layer.valid

    def between_steps(self, layer: LayerCache) -> LayerCache:
        """Runs after every decode step, shape-preserving: evicts once no free slot is left, if `every` is set."""
        if not self.every:
            return layer
        return jax.lax.cond(layer.fill >= layer.slots, self.evict, lambda x: x, layer)

    def while_decoding(self) -> "CachePolicy":
        """What of this policy decoding depends on; policies that are equal in that share one compiled loop."""
        return self if self.every or self.log_multiplicity else CachePolicy()

    def evict(self, layer: LayerCache) -> LayerCache:
        """Prunes a layer in the midst of decoding to its budget; its `room` slots are free again afterwards.

        `every` can be set only for policies that override this.
        """
        return layer

    def row_budget(self, length: Int[Array, " B"], bucket: int) -> Int[Array, " B"]:
        """[B] slots that each row may hold."""
        return row_slots(self.budget, length, bucket)


def keep(layer: LayerCache, chosen: Bool[Array, "B K S"], budget: Int[Array, " B"], capacity: int) -> LayerCache:
    """The chosen slots of a layer, in time order, in `capacity` slots plus the layer's room; sets the budget."""
    slots, kept, _ = chosen_slots(chosen & layer.valid, capacity)
    return dataclasses.replace(take_slots(layer, slots, kept, room=layer.room), budget=budget)


def keep_between_steps(layer: LayerCache, chosen: Bool[Array, "B K S"]) -> LayerCache:
    """The chosen slots of a layer in the midst of decoding: its room is free again, its budget stays."""
    return keep(layer, chosen, layer.budget, layer.slots - layer.room)


def check_option(name: str, value: Any, kind: Any) -> None:
    """Checks an option's value against its annotation: a type, a union of types, or a Literal.

    Raises:
        ValueError: naming the option and what it may be.
    """
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(kind))}.")
        return
    kinds = get_args(kind) or (kind,)
    allowed = (*kinds, int) if float in kinds else kinds
    known = isinstance(value, allowed) and isinstance(value, bool) == (bool in kinds)
    if not known or (isinstance(value, float) and math.isnan(value)):
        names = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
        raise ValueError(f"{name} must be a proper {names}, not {value!r}.")


def every_n_steps(policy: "CachePolicy", n: int) -> "CachePolicy":
    """`policy` with its rule for eviction while decoding, after every `n` steps and at a fixed capacity.

    The cache needs `policy.decode_room(steps)` free slots: eviction comes when the room is used up.

    Raises:
        ValueError: if `n` is below 1, or the policy has no such rule.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1 decode step, not {n}.")
    return dataclasses.replace(policy, every=n)


def is_text(modality: Int[Array, "*B"]) -> Bool[Array, "*B"]:
    """True for text of the prompt (special tokens included), not for generated tokens."""
    return modality == Modality.TEXT

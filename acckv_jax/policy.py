"""The protocol of cache policies.

A policy is a frozen dataclass of options with pure methods. Being hashable by value it is a static argument of jitted
functions, and two equal policies share one compiled program; a tuple of closures would compile anew for each.

A policy is written at one of three levels, each a method with a default that uses the one before:

    token_scores(layer, context) -> scores [B, K, S]      which tokens matter
    select(scores, layer, context) -> mask [B, K, S]      which of them stay
    compress(layer, context) -> (LayerCache, carry)       what becomes of the layer

Wrappers (`acckv_jax.wrappers`) reach a policy through the context: `keep` are slots that must stay, `scores` and
`chosen` replace what its own `token_scores` and `select` would say. docs/policy_protocol.md lists what each published
policy needs of this protocol.
"""

import dataclasses
import math
import types
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.budget import Budget, TokenCounts, check_budget, check_slots, row_slots, slots_of
from acckv_jax.cache import KVCache, LayerCache, flagged, take_slots
from acckv_jax.queries import QuerySet
from acckv_jax.selection import chosen_slots, top_k_mask
from acckv_jax.sharding import sharded_like


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of a policy beside the layer itself.

    Attributes:
        layer: [] number of the layer.
        length: [B] tokens of the prompt; while decoding, tokens so far.
        next_position: [B] rotary position of the next token, which differs from `length` with M-RoPE.
        budget: [B] slots that each row may hold in this layer.
        sums: [B, K, S] for each entry of `queries`; read them by `attention_sums`.
        carry: what `compress` returned for the layer before; for the first layer, `CachePolicy.init_carry`.
        inputs: by name, what the policy `needs`, aligned with the slots: `hidden_states` [B, S, D], `unrotated_q`
            [B, S, N, H], `rotary_frequencies` [H/2], `output_weights` [N, H, D]. Empty while decoding.
        keep: [B, K, S] slots that must stay, or None.
        scores: [B, K, S] in the place of the policy's own scores, or None.
        chosen: [B, K, S] in the place of the policy's own `select`, or None.
        queries: the sets that `sums` belong to (static), see `CachePolicy.queries_in`.
        num_layers: of the decoder (static).
        capacity: slots of the result, the reserved ones not counted (static).

    Example:
        >>> import acckv_jax as kv
        >>> class LastRow(kv.CachePolicy):
        ...     queries = (kv.QuerySet(last=1),)
        ...
        ...     def token_scores(self, layer, context):
        ...         return context.attention_sums(self.queries[0])
        >>> LastRow(budget=0.5).window
        1
    """

    layer: Int[Array, ""]
    length: Int[Array, " B"]
    next_position: Int[Array, " B"]
    budget: Int[Array, " B"]
    sums: tuple[Float[Array, "B K S"], ...] = ()
    carry: Any = ()
    inputs: dict[str, Array] = dataclasses.field(default_factory=dict)
    keep: Bool[Array, "B K S"] | None = None
    scores: Float[Array, "B K S"] | None = None
    chosen: Bool[Array, "B K S"] | None = None
    queries: tuple[QuerySet, ...] = dataclasses.field(default=(), metadata={"static": True})
    num_layers: int = dataclasses.field(default=1, metadata={"static": True})
    capacity: int = dataclasses.field(default=0, metadata={"static": True})

    def attention_sums(self, queries: QuerySet) -> Float[Array, "B K S"]:
        """The column sums of a query set that the policy asked for.

        Raises:
            ValueError: if it did not.
        """
        if queries not in self.queries:
            raise ValueError(f"no attention sums of {queries}: a policy names the sets it reads in its `queries`.")
        return self.sums[self.queries.index(queries)]


@dataclasses.dataclass(frozen=True)
class CachePolicy:
    """Base of all policies. As it is, it scores all tokens alike, so the earliest stay.

    A new policy overrides `token_scores`, and lists the attention that it reads in `queries`. All methods but `check`,
    `needed_slots`, `capacity`, `queries_in`, `reserved_slots` and `with_budget` run inside jit.

    Attributes:
        budget: fraction of the prompt (float) or number of slots (int) kept per layer, row and KV head.
        evict_every: decode steps between two prunes, for which slots are reserved; 0: decoding never prunes.
        is_fraction: whether the budget is a fraction. 1 and 1.0 are equal, and so would be policies that keep one slot
            and everything, for which jit must not take the same program.

    Example:
        >>> import acckv_jax as kv
        >>> policy = kv.SnapKV(budget=0.2)
        >>> policy.capacity(1000, layer=0)
        200
    """

    budget: Budget = 1.0
    evict_every: int = 0
    is_fraction: bool = dataclasses.field(init=False, repr=False, default=True)

    can_evict: ClassVar[bool] = False
    """Whether `evict` makes sense: whether the scores can be had between decode steps too."""
    log_multiplicity: ClassVar[bool] = False
    """Whether decoding adds log(multiplicity) to the logits of merged slots."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Inputs beside q, k and v that the decoder must hand to `attend`, by name (see `acckv_jax.decoder.Attend`)."""

    def __post_init__(self) -> None:
        check_options(self)
        check_budget(self.budget)
        object.__setattr__(self, "is_fraction", isinstance(self.budget, float))
        if self.evict_every < 0:
            raise ValueError(
                f"evict_every is a number of decode steps, or 0 for no pruning in between, not {self.evict_every}."
            )
        if self.evict_every and not self.can_evict:
            raise ValueError(f"{type(self).__name__} has no rule for pruning between decode steps; use evict_every=0.")

    # On the host.

    def check(self, counts: TokenCounts) -> None:
        """Checks the budget against a prompt, on the host, before anything is compiled.

        Raises:
            ValueError: naming the smallest budget that would do.
        """
        for budget in self.budgets:
            try:
                check_slots(budget, counts, *self.needed_slots(counts))
            except ValueError as error:
                of_layer = f" This is one layer's share of the budget {self.budget}." if budget != self.budget else ""
                raise ValueError(f"{error}{of_layer}") from None

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets of the layers, each once."""
        return (self.budget,)

    def check_layers(self, num_layers: int) -> None:
        """Checks the policy against a decoder of so many layers.

        Raises:
            ValueError: if it is made for another number.
        """

    def for_layers(self, num_layers: int) -> "CachePolicy":
        """The policy for a decoder of so many layers: itself, unless its capacities depend on their number.

        Raises:
            ValueError: if it is made for another number.
        """
        self.check_layers(num_layers)
        return self

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """Slots [B] that the policy cannot do without, and what needs them, as the beginning of a sentence."""
        return 1, "a row needs"

    def capacity(self, bucket: int, layer: int) -> int:
        """Slots that a layer allocates for a prompt padded to `bucket` tokens."""
        return max(1, slots_of(self.budget, bucket))

    def reserved_slots(self, new_tokens: int) -> int:
        """Slots to reserve for `new_tokens` tokens of decoding."""
        return min(self.evict_every, new_tokens) if self.evict_every else new_tokens

    def with_budget(self, budget: Budget) -> Self:
        """The same policy with another budget."""
        return dataclasses.replace(self, budget=budget)

    def while_decoding(self) -> "CachePolicy":
        """The policy that decoding needs. Policies for which it is equal share one compiled loop."""
        return self if self.evict_every or self.log_multiplicity else CachePolicy()

    # Statistics and sizes.

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The sets of query rows whose column sums the policy reads."""
        return ()

    def queries_in(self, layer: int) -> tuple[QuerySet, ...]:
        """Those of `queries` whose sums the policy is given in a layer, on the host. `prefill` computes no others."""
        return self.queries

    @property
    def mass_queries(self) -> QuerySet | None:
        """The one of `queries` that `LayerCache.mass` begins with; decoding then adds each step's attention to it."""
        return None

    @property
    def second_pass(self) -> bool:
        """Whether it reads what further tokens attend to, for which `probe` must run before `prune`."""
        return any(queries.rows == "probe" for queries in self.queries)

    @property
    def recent_queries(self) -> int:
        """How many queries of the last tokens `LayerCache.recent_queries` holds, while decoding too."""
        return 0

    @property
    def window(self) -> int:
        """Trailing tokens of the prompt that must come in one chunk, because their sums depend on its length."""
        return max((queries.last or 0 for queries in self.queries), default=0)

    def row_budget(self, length: Int[Array, " B"], bucket: int, layer: int | Array) -> Int[Array, " B"]:
        """[B] slots that each row may hold in a layer."""
        return row_slots(self.budget, length, bucket)

    def init_carry(self, modality: Int[Array, "B S"]) -> Any:
        """The carry of the first layer (`Context.carry`): any pytree, whose structure, shapes and types layers keep.

        Arrays [B, S, ...] are divided over a mesh as the slots are.

        Args:
            modality: [B, S] ids of the prompt's slots.
        """
        return ()

    # Inside jit.

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """How much each slot matters; infinity is allowed. The scores of empty slots do not count."""
        return jnp.zeros_like(layer.mass)

    def eviction_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """`token_scores` between decode steps."""
        return self.token_scores(layer, context)

    def select(self, scores: Float[Array, "B K S"], layer: LayerCache, context: Context) -> Bool[Array, "B K S"]:
        """The slots to keep: those that must stay, and of the others the best that the budget allows.

        Ties go to the earlier slot.
        """
        if context.keep is None:
            return top_k_mask(scores, layer.valid, context.budget)
        sure = layer.valid & context.keep
        left = context.budget[:, None] - sure.sum(-1, dtype=jnp.int32)
        return sure | top_k_mask(scores, layer.valid & ~sure, left)

    def compress(self, layer: LayerCache, context: Context) -> tuple[LayerCache, Any]:
        """Prunes one layer once its prompt is complete.

        Args:
            layer: every token of the prompt, in time order, with padding anywhere.
            context: see there.

        Returns:
            A layer of `context.capacity` slots and those reserved, its `budget` set; and the next layer's carry.
        """
        return self._keep_best("token_scores", layer, context), context.carry

    def evict(self, layer: LayerCache, context: Context) -> LayerCache:
        """Prunes a layer between decode steps to its budget; its reserved slots are free again afterwards."""
        return self._keep_best("eviction_scores", layer, context)

    def _keep_best(self, method: str, layer: LayerCache, context: Context) -> LayerCache:
        scores = scores_of(self, method, layer, context)
        layer = flagged_scores(layer, scores)
        chosen = self.select(scores, layer, context) if context.chosen is None else context.chosen
        return keep(layer, chosen, context)


def between_steps(
    policy: CachePolicy, layer: LayerCache, cache: KVCache, number: int | Array, num_layers: int
) -> LayerCache:
    """Runs on a layer of `cache` after every decode step, shape-preserving: evicts once no slot is free.

    Nothing happens unless the policy has `evict_every` set.
    """
    if not policy.evict_every:
        return layer
    capacity = layer.slots - layer.reserved_slots
    context = Context(
        jnp.asarray(number, jnp.int32),
        cache.length,
        cache.next_position,
        layer.budget,
        num_layers=num_layers,
        capacity=capacity,
    )

    def evict(layer: LayerCache) -> LayerCache:
        return policy.evict(layer, context)

    return jax.lax.cond(layer.next_slot >= layer.slots, evict, lambda x: x, layer)


def scores_of(policy: CachePolicy, method: str, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
    """The scores of the context, or else of the policy's `method`; divided over a mesh as the slots are.

    Raises:
        ValueError: if there is not one for each slot.
    """
    scores = getattr(policy, method)(layer, context) if context.scores is None else context.scores
    if jnp.shape(scores) != layer.mass.shape:
        raise ValueError(
            f"{type(policy).__name__}: scores are of shape {list(jnp.shape(scores))}, and not [B, K, S] = "
            f"{list(layer.mass.shape)}: {method} returns one for each row, KV head and slot."
        )
    return sharded_like(scores, layer.mass)


def flagged_scores(layer: LayerCache, scores: Float[Array, "B K S"]) -> LayerCache:
    """Lowers the `finite` flag of rows with a NaN among the scores of their tokens; infinity is a score."""
    return flagged(layer, jnp.where(layer.valid & jnp.isnan(scores), jnp.nan, 0.0))


def keep(layer: LayerCache, chosen: Bool[Array, "B K S"], context: Context) -> LayerCache:
    """The chosen slots of a layer, in time order, in `context.capacity` slots and those reserved; sets the budget."""
    slots, kept, _ = chosen_slots(chosen & layer.valid, context.capacity)
    small = take_slots(layer, slots, kept, reserved_slots=layer.reserved_slots)
    return dataclasses.replace(small, budget=context.budget)


def check_policy(policy: Any) -> None:
    """Checks that a policy is one.

    Raises:
        ValueError: if it is, for instance, a name or a class.
    """
    if not isinstance(policy, CachePolicy):
        raise ValueError(f"a policy is an object such as SnapKV(budget=0.2), or make_policy(name), not {policy!r}.")


def check_options(policy: CachePolicy) -> None:
    """Checks the options of a policy or wrapper against their annotations; NumPy's numbers become Python's.

    Raises:
        ValueError: naming the option and what it may be.
    """
    for option in dataclasses.fields(policy):
        value = getattr(policy, option.name) if option.init else None
        if isinstance(value, np.integer | np.floating):
            object.__setattr__(policy, option.name, value.item())
        if option.init and option.name not in ("budget", "inner"):
            check_option(option.name, getattr(policy, option.name), option.type)


def check_option(name: str, value: Any, kind: Any) -> None:
    """Checks an option's value against its annotation: a type, a union of types, or a Literal.

    Raises:
        ValueError: naming the option and what it may be.
    """
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(get_args(kind))}.")
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple | list):
            raise ValueError(f"{name} must be several values, such as ({', '.join(['1'] * 2)}), not {value!r}.")
        for one in value:
            check_option(name, one, get_args(kind)[0])
        return
    kinds = get_args(kind) or (kind,)
    allowed = (*kinds, int) if float in kinds else kinds
    known = isinstance(value, allowed) and isinstance(value, bool) == (bool in kinds)
    if known and isinstance(value, int) and abs(value) >= 2**31:
        raise ValueError(f"{name} must be a number of at most 31 bits, not {value}.")
    if not known or (isinstance(value, float) and not math.isfinite(value)):
        names = " or ".join("None" if k is types.NoneType else k.__name__ for k in kinds)
        raise ValueError(f"{name} must be a proper {names}, not {value!r}.")

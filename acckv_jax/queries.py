"""Which query rows of a prompt count in a column sum of attention, and how much."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.modality import Modality

UNFINISHED = 2**30
"""Stands for the length of a prompt of which more is to come."""

UNPROBED = float("inf")
"""The statistic of tokens that came after a probe: nothing says that they can be spared."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """The query rows of a chunk of prompt.

    Attributes:
        index: [B, T] token indices.
        modality: [B, T] ids.
        valid: [B, T] false for padding.
        total: [B] tokens of the whole prompt; `UNFINISHED` while more chunks are to come.
    """

    index: Int[Array, "B T"]
    modality: Int[Array, "B T"]
    valid: Bool[Array, "B T"]
    total: Int[Array, " B"]


@dataclasses.dataclass(frozen=True)
class QuerySet:
    """A statistic of attention: for each slot, the sum of what some query rows attend to it.

    The sum over rows i of weight_i * A[i, j], mean over the query heads of a KV head. Policies that ask for equal sets
    share one sum.

    Attributes:
        rows: all rows; those of text tokens; those after the last media token, and the last row in any case; or those
            of `probe`, which follow the prompt and are not cached.
        last: only the last so many tokens of the prompt; None for all.
        weight: each row counts once, or i + 1 times.
        exclude_diagonal: leaves a token's attention to itself out.
        reduce: the sum over rows, mean over heads; or the largest over both.

    Example:
        >>> import acckv_jax as kv
        >>> kv.QuerySet(last=32)
        QuerySet(rows='all', last=32, weight='one', exclude_diagonal=False, reduce='sum')
    """

    rows: Literal["all", "text", "after_media", "probe"] = "all"
    last: int | None = None
    weight: Literal["one", "position"] = "one"
    exclude_diagonal: bool = False
    reduce: Literal["sum", "max"] = "sum"

    def weights(self, queries: Queries) -> Float[Array, "B T"]:
        """The rows' weights; 0 for rows that do not count."""
        counted = queries.valid
        if self.rows == "text":
            counted = counted & is_text(queries.modality)
        if self.rows == "after_media":
            last = jnp.where(_has_media(queries), queries.index, -1).max(1, keepdims=True)
            counted = counted & ((queries.index > last) | (queries.index == queries.total[:, None] - 1))
        if self.last is not None:
            counted = counted & (queries.index >= (queries.total - self.last)[:, None])
        weight = counted.astype(jnp.float32)
        return weight if self.weight == "one" else (queries.index + 1).astype(jnp.float32) * weight

    def still_counted(self, sums: Float[Array, "B K S"], queries: Queries) -> Float[Array, "B K S"]:
        """What `sums` over earlier chunks are once a chunk follows: media in it void the rows after earlier ones."""
        if self.rows != "after_media":
            return sums
        return jnp.where(_has_media(queries).any(1)[:, None, None], 0.0, sums)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryWeights:
    """Weights of query rows in a column sum: sum_i w[b, i] A[i, j], mean over the query heads of a KV head.

    Attributes:
        weights: [B, T] float32; zero for padding rows, never negative.
        exclude_diagonal: leaves A[j, j] out (static).
        window: promises that each sequence's rows with weight lie among so many adjacent ones (static); None for no
            promise. Kernels then look at these rows only.
        reduce: see `QuerySet` (static).
    """

    weights: Float[Array, "B T"]
    exclude_diagonal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    reduce: Literal["sum", "max"] = dataclasses.field(default="sum", metadata={"static": True})

    def combined(self, one: Array, other: Array) -> Array:
        """Of two sets of rows together: the sum, or the larger."""
        return one + other if self.reduce == "sum" else jnp.maximum(one, other)


Sums = tuple[Float[Array, "B K S"], ...]


def _has_media(queries: Queries) -> Bool[Array, "B T"]:
    kind = queries.modality
    return queries.valid & ((kind == Modality.VIDEO) | (kind == Modality.AUDIO))


def is_text(modality: Int[Array, "*B"]) -> Bool[Array, "*B"]:
    """True for text of the prompt (special tokens included), not for generated tokens."""
    return modality == Modality.TEXT

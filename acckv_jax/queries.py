"""Which query rows of a prompt count in a column sum of attention, and how much."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from acckv_jax.modality import Modality

UNFINISHED = 2**30
"""Stands for the length of a prompt of which more is to come."""


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
        rows: all rows, or those of text tokens.
        last: only the last so many tokens of the prompt; None for all.
        weight: each row counts once, or i + 1 times.
        exclude_diagonal: leaves a token's attention to itself out.

    Example:
        >>> import acckv_jax as kv
        >>> kv.QuerySet(last=32)
        QuerySet(rows='all', last=32, weight='one', exclude_diagonal=False)
    """

    rows: Literal["all", "text"] = "all"
    last: int | None = None
    weight: Literal["one", "position"] = "one"
    exclude_diagonal: bool = False

    def weights(self, queries: Queries) -> Float[Array, "B T"]:
        """The rows' weights; 0 for rows that do not count."""
        counted = queries.valid
        if self.rows == "text":
            counted = counted & is_text(queries.modality)
        if self.last is not None:
            counted = counted & (queries.index >= (queries.total - self.last)[:, None])
        weight = counted.astype(jnp.float32)
        return weight if self.weight == "one" else (queries.index + 1).astype(jnp.float32) * weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QueryWeights:
    """Weights of query rows in a column sum: sum_i w[b, i] A[i, j], mean over the query heads of a KV head.

    Attributes:
        weights: [B, T] float32; zero for padding rows.
        exclude_diagonal: leaves A[j, j] out (static).
        window: promises that each sequence's rows with weight lie among so many adjacent ones (static); None for no
            promise. Kernels then look at these rows only.
    """

    weights: Float[Array, "B T"]
    exclude_diagonal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})


Sums = tuple[Float[Array, "B K S"], ...]


def is_text(modality: Int[Array, "*B"]) -> Bool[Array, "*B"]:
    """True for text of the prompt (special tokens included), not for generated tokens."""
    return modality == Modality.TEXT

"""KVzip: what the model attends to when it says the context again (Kim et al. 2025, arXiv 2505.23416, section 3)."""

import dataclasses

from jaxtyping import Array, Float

from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.queries import QuerySet


@dataclasses.dataclass(frozen=True)
class KVzip(CachePolicy):
    """Keeps the tokens that receive the largest attention in a second pass, in which the model repeats the prompt.

    What it keeps does not depend on the question, and serves every one. `probe` is the second pass: its tokens are an
    instruction and, of a text, the text itself; of a clip, what the model says when it is asked to describe it. It
    costs about as much as reading the prompt, and the whole cache is held until it is over; `prefill`, which prunes on
    the way, cannot serve this policy.

    Example:
        >>> import acckv_jax as kv
        >>> kv.KVzip(budget=0.2).second_pass
        True
    """

    @property
    def queries(self) -> tuple[QuerySet, ...]:
        """The largest attention of the second pass."""
        return (QuerySet(rows="probe", reduce="max"),)

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """The largest attention over the rows of the second pass and the query heads of the group."""
        return context.attention_sums(self.queries[0])

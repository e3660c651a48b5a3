"""StreamingLLM: attention sinks and the most recent tokens (Xiao et al. 2023, arXiv 2309.17453, section 3.2)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from acckv_jax.budget import TokenCounts
from acckv_jax.cache import LayerCache
from acckv_jax.policy import CachePolicy, Context


@dataclasses.dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """Keeps the first `sinks` tokens and the most recent ones. Positions are not re-numbered: keys stay rotated.

    Attributes:
        evict_every: decode steps between two prunes; the paper's 1 copies the whole cache at every step.
        sinks: first tokens of the sequence that are always kept.

    Example:
        >>> import acckv_jax as kv
        >>> kv.StreamingLLM(budget=256).reserved_slots(new_tokens=1000)
        16
    """

    evict_every: int = 16
    sinks: int = 4
    can_evict: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0:
            raise ValueError(f"sinks is a number of tokens, not {self.sinks}.")

    def needed_slots(self, counts: TokenCounts) -> tuple[np.ndarray | int, str]:
        """The sinks and one recent token must fit."""
        return self.sinks + 1, f"{self.sinks} sinks and one recent token need"

    def token_scores(self, layer: LayerCache, context: Context) -> Float[Array, "B K S"]:
        """How recent a token is; the sinks come first."""
        return jnp.where(layer.index < self.sinks, jnp.inf, layer.index.astype(jnp.float32))

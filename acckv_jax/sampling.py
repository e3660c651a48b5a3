"""From logits to tokens."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

LEAST_TEMPERATURE = 1e-4
"""Logits over less would leave float32's range."""


@runtime_checkable
class Sampler(Protocol):
    """Chooses one token per row; hashable, so that it can be static."""

    def __call__(self, logits: Float[Array, "B V"], key: Array) -> Int[Array, " B"]:
        """Tokens [B]."""
        ...


def greedy(logits: Float[Array, "B V"], key: Array) -> Int[Array, " B"]:
    """The most likely token; the key is not used.

    Example:
        >>> import acckv_jax as kv
        >>> kv.greedy(jnp.array([[0.1, 0.7, 0.2]]), jax.random.key(0)).tolist()
        [1]
    """
    return jnp.argmax(logits, -1).astype(jnp.int32)


def random_key(seed: int) -> Array:
    """The key of a seed.

    Raises:
        ValueError: unless it is a whole number from 0 to 2**32 - 1; jax would take others for one of these.
    """
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"a seed is a whole number from 0 to 4294967295, not {seed!r}.")
    return jax.random.key(int(seed))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draws from softmax(logits / temperature), of the `top_k` likeliest tokens if that is set.

    One key serves the batch, so what a row draws depends on its place in the batch.

    Attributes:
        temperature: at least 1e-4.
        top_k: number of tokens to draw from; None for all.

    Example:
        >>> import acckv_jax as kv
        >>> sampler = kv.Sample(temperature=0.7, top_k=2)
        >>> int(sampler(jnp.array([[0.1, 0.7, 0.2]]), jax.random.key(0))[0]) in (1, 2)
        True
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.temperature, str | bytes) or not LEAST_TEMPERATURE <= self.temperature:
            raise ValueError(
                f"temperature must be at least {LEAST_TEMPERATURE}, not {self.temperature!r}; for 0 use greedy."
            )
        if self.top_k is not None and (not isinstance(self.top_k, int | np.integer) or self.top_k < 1):
            raise ValueError(f"top_k must be a number of tokens, at least 1, not {self.top_k!r}.")

    def __call__(self, logits: Float[Array, "B V"], key: Array) -> Int[Array, " B"]:
        """Draws one token per row."""
        logits = logits.astype(jnp.float32) / self.temperature
        if self.top_k is not None:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32)

"""All policies, by name."""

from collections.abc import Callable
from typing import Any

from acckv_jax.policies.acckv import AccKV, acckv_plus
from acckv_jax.policies.full import Full
from acckv_jax.policies.h2o import H2O
from acckv_jax.policies.random import Random
from acckv_jax.policies.snapkv import SnapKV
from acckv_jax.policies.streaming_llm import StreamingLLM
from acckv_jax.policy import CachePolicy

POLICIES: dict[str, Callable[..., CachePolicy]] = {
    "full": Full,
    "random": Random,
    "streaming_llm": StreamingLLM,
    "h2o": H2O,
    "snapkv": SnapKV,
    "acckv": AccKV,
    "acckv_plus": acckv_plus,
}


def make_policy(name: str, **options: Any) -> CachePolicy:
    """A policy by name.

    Raises:
        ValueError: on an unknown name or option, naming those there are.
    """
    if name not in POLICIES:
        raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICIES)}.")
    try:
        return POLICIES[name](**options)
    except TypeError as error:
        raise ValueError(f"policy {name!r} does not take these options: {error}.") from error

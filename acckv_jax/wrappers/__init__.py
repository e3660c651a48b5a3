"""Wrappers: policies around other policies."""

from acckv_jax.wrappers.base import Wrapper
from acckv_jax.wrappers.evict_every import EvictEvery
from acckv_jax.wrappers.per_layer import PerLayer
from acckv_jax.wrappers.protected import Protected
from acckv_jax.wrappers.quantized import Quantized

WRAPPERS: dict[str, type[Wrapper]] = {
    "evict_every": EvictEvery,
    "per_layer": PerLayer,
    "protected": Protected,
    "quantized": Quantized,
}

__all__ = ["WRAPPERS", "EvictEvery", "PerLayer", "Protected", "Quantized", "Wrapper"]

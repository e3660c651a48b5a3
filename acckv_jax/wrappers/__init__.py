"""Wrappers: policies around other policies."""

from acckv_jax.wrappers.ada_kv import AdaKV
from acckv_jax.wrappers.base import Wrapper
from acckv_jax.wrappers.clie import CLIE
from acckv_jax.wrappers.critical_kv import CriticalKV
from acckv_jax.wrappers.evict_every import EvictEvery
from acckv_jax.wrappers.per_layer import PerLayer
from acckv_jax.wrappers.protected import Protected
from acckv_jax.wrappers.quantized import Quantized
from acckv_jax.wrappers.smoothed import Smoothed

WRAPPERS: dict[str, type[Wrapper]] = {
    "ada_kv": AdaKV,
    "clie": CLIE,
    "critical_kv": CriticalKV,
    "evict_every": EvictEvery,
    "per_layer": PerLayer,
    "protected": Protected,
    "quantized": Quantized,
    "smoothed": Smoothed,
}

__all__ = [
    "CLIE",
    "WRAPPERS",
    "AdaKV",
    "CriticalKV",
    "EvictEvery",
    "PerLayer",
    "Protected",
    "Quantized",
    "Smoothed",
    "Wrapper",
]

"""All policies, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

from acckv_jax.policies.acckv import AccKV
from acckv_jax.policies.expected_attention import ExpectedAttention
from acckv_jax.policies.fastv import FastV
from acckv_jax.policies.full import Full
from acckv_jax.policies.h2o import H2O
from acckv_jax.policies.keydiff import KeyDiff
from acckv_jax.policies.knorm import Knorm
from acckv_jax.policies.kvzip import KVzip
from acckv_jax.policies.look_m import LookM
from acckv_jax.policies.mada_kv import MadaKV
from acckv_jax.policies.mix_kv import MixKV
from acckv_jax.policies.omni_mem import OmniMem
from acckv_jax.policies.pyramid_kv import PyramidKV
from acckv_jax.policies.r_kv import RKV
from acckv_jax.policies.random import Random
from acckv_jax.policies.snapkv import SnapKV
from acckv_jax.policies.streaming_llm import StreamingLLM
from acckv_jax.policies.tova import TOVA
from acckv_jax.policies.vl_cache import VLCache
from acckv_jax.policy import CachePolicy
from acckv_jax.wrappers import WRAPPERS

POLICIES: dict[str, Callable[..., CachePolicy]] = {
    "full": Full,
    "random": Random,
    "streaming_llm": StreamingLLM,
    "h2o": H2O,
    "snapkv": SnapKV,
    "knorm": Knorm,
    "keydiff": KeyDiff,
    "tova": TOVA,
    "mix_kv": MixKV,
    "look_m": LookM,
    "fastv": FastV,
    "pyramid_kv": PyramidKV,
    "expected_attention": ExpectedAttention,
    "r_kv": RKV,
    "kvzip": KVzip,
    "vl_cache": VLCache,
    "mada_kv": MadaKV,
    "omni_mem": OmniMem,
    "acckv": AccKV,
    "acckv_plus": AccKV.plus,
    "omni_fit": AccKV.omni_fit,
}


_RENAMED_OPTIONS = {"every": "evict_every"}
"""Names of options in version 0.1."""


def make_policy(name: str, **options: Any) -> CachePolicy:
    """A policy by name, for command lines; wrappers are written around it, such as "protected(snapkv)".

    An option belongs to the outermost wrapper that has it, or else to the policy.

    Raises:
        ValueError: on an unknown name or option, naming those there are.

    Example:
        >>> import acckv_jax as kv
        >>> kv.make_policy("protected(knorm)", budget=0.2, first=8)
        Protected(inner=Knorm(budget=0.2, evict_every=0), first=8, last=16)
    """
    if not isinstance(name, str):
        raise ValueError(f"a policy's name is a text such as 'snapkv', not {name!r}.")
    outer, bracket, rest = name.partition("(")
    if outer in WRAPPERS and rest in ("", ")"):
        raise ValueError(f"{outer} wraps another policy; write that inside it, such as {outer}(snapkv).")
    try:
        if bracket and outer in WRAPPERS and rest.endswith(")"):
            wrapper = WRAPPERS[outer]
            own = {f.name for f in dataclasses.fields(wrapper) if f.init and f.name != "inner"} & options.keys()
            inner = make_policy(rest[:-1], **{key: value for key, value in options.items() if key not in own})
            return wrapper(inner, **{key: options[key] for key in own})
        if name not in POLICIES:
            raise ValueError(
                f"unknown policy {name!r}; choose one of {', '.join(POLICIES)}, or write one inside a wrapper "
                f"({', '.join(WRAPPERS)}) such as protected(snapkv)."
            )
        return POLICIES[name](**options)
    except TypeError as error:
        new = [f"; {old} is {_RENAMED_OPTIONS[old]} since version 0.2" for old in options if old in _RENAMED_OPTIONS]
        raise ValueError(f"policy {name!r} does not take these options: {error}{''.join(new)}.") from error

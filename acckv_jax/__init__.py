"""An explicit, sharded KV cache and jitted policies that prune it."""

from typing import TYPE_CHECKING, Any

from acckv_jax import jitted
from acckv_jax.budget import TokenCounts, count_tokens
from acckv_jax.cache import (
    CacheBytes,
    KVCache,
    LayerCache,
    cache_bytes,
    check_finite,
    compact,
    kept_counts,
    stack,
    unstack,
)
from acckv_jax.calibration import omni_mem_shares, vl_cache_shares
from acckv_jax.checkpoint import ModelIdentity, load_cache, save_cache
from acckv_jax.decoder import Decoder, StepFn
from acckv_jax.decoding import DecodeState, decode, decode_step, start_decoding
from acckv_jax.generate import Generation, generate
from acckv_jax.modality import Modality, Prompt, bucket_length, make_prompt
from acckv_jax.policies import POLICIES, make_policy
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
from acckv_jax.policy import CachePolicy, Context
from acckv_jax.prefill import extend, prefill, score
from acckv_jax.probing import probe
from acckv_jax.pruning import prune
from acckv_jax.queries import QuerySet
from acckv_jax.sampling import Sample, greedy
from acckv_jax.scored import Scored, repeat_rows
from acckv_jax.sharding import ShardingRules
from acckv_jax.stacks import Stack, run_layers
from acckv_jax.wrappers import (
    CLIE,
    WRAPPERS,
    AdaKV,
    CriticalKV,
    EvictEvery,
    PerLayer,
    Protected,
    Quantized,
    Smoothed,
    Wrapper,
)

__all__ = [
    "AccKV",
    "AdaKV",
    "CLIE",
    "CacheBytes",
    "CachePolicy",
    "Context",
    "CriticalKV",
    "DecodeState",
    "Decoder",
    "EvictEvery",
    "ExpectedAttention",
    "FastV",
    "Full",
    "Generation",
    "H2O",
    "KVCache",
    "KVzip",
    "KeyDiff",
    "Knorm",
    "LayerCache",
    "LookM",
    "MadaKV",
    "MixKV",
    "Modality",
    "ModelIdentity",
    "OmniMem",
    "POLICIES",
    "PerLayer",
    "Prompt",
    "Protected",
    "PyramidKV",
    "Quantized",
    "QuerySet",
    "RKV",
    "Random",
    "Sample",
    "Scored",
    "ShardingRules",
    "Smoothed",
    "SnapKV",
    "Stack",
    "StepFn",
    "StreamingLLM",
    "TOVA",
    "TokenCounts",
    "VLCache",
    "WRAPPERS",
    "Wrapper",
    "bucket_length",
    "cache_bytes",
    "check_finite",
    "compact",
    "count_tokens",
    "decode",
    "decode_step",
    "extend",
    "generate",
    "greedy",
    "jitted",
    "kept_counts",
    "load_cache",
    "make_policy",
    "make_prompt",
    "omni_mem_shares",
    "prefill",
    "probe",
    "prune",
    "repeat_rows",
    "run_layers",
    "save_cache",
    "score",
    "stack",
    "start_decoding",
    "unstack",
    "vl_cache_shares",
]

_RENAMED = {"every_n_steps": "EvictEvery(policy, steps)"}

if not TYPE_CHECKING:  # else type checkers would believe that every name exists

    def __getattr__(name: str) -> Any:
        if name in _RENAMED:  # an ImportError, because `from acckv_jax import name` shows no AttributeError's words
            raise ImportError(
                f"acckv_jax.{name} is {_RENAMED[name]} since version 0.2; CHANGELOG.md has all new names."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

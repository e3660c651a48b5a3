"""An explicit, sharded KV cache and jitted policies that prune it."""

from acckv_jax.budget import TokenCounts, count_tokens
from acckv_jax.cache import (
    CacheBytes,
    KVCache,
    LayerCache,
    cache_bytes,
    check_finite,
    compact,
    kept_counts,
)
from acckv_jax.decoding import DecodeState, decode, decode_step, start_decoding
from acckv_jax.modality import Modality, Prompt, bucket_length, make_prompt
from acckv_jax.policies import POLICIES, make_policy
from acckv_jax.policy import CachePolicy, every_n_steps
from acckv_jax.prefill import Scored, extend, prefill, prune, repeat_rows, score
from acckv_jax.sampling import Sample, greedy
from acckv_jax.sharding import ShardingRules
from acckv_jax.step import StepFn

__all__ = [
    "POLICIES",
    "CacheBytes",
    "CachePolicy",
    "DecodeState",
    "KVCache",
    "LayerCache",
    "Modality",
    "Prompt",
    "Sample",
    "Scored",
    "ShardingRules",
    "StepFn",
    "TokenCounts",
    "bucket_length",
    "cache_bytes",
    "check_finite",
    "compact",
    "count_tokens",
    "decode",
    "decode_step",
    "every_n_steps",
    "extend",
    "greedy",
    "kept_counts",
    "make_policy",
    "make_prompt",
    "prefill",
    "prune",
    "repeat_rows",
    "score",
    "start_decoding",
]

"""The library's functions as compiled programs, for callers who have no jit of their own.

`prune` is not among them: called as it is, one compiled program serves all layers of equal size.
"""

import jax

from acckv_jax import decoding
from acckv_jax import prefill as reading

prefill = jax.jit(reading.prefill, static_argnames=("decoder", "policy", "reserved_slots"))
"""`acckv_jax.prefill`, jitted."""
score = jax.jit(reading.score, static_argnames=("decoder", "policies", "complete"))
"""`acckv_jax.score`, jitted."""
extend = jax.jit(reading.extend, static_argnames=("decoder", "policy", "reserved_slots"))
"""`acckv_jax.extend`, jitted."""
decode_step = jax.jit(decoding.decode_step, static_argnames=("decoder", "policy"), donate_argnames="cache")
"""`acckv_jax.decode_step`, jitted; `cache` is donated."""
decode = jax.jit(
    decoding.decode,
    static_argnames=("decoder", "policy", "steps", "sampler", "stop_token_ids"),
    donate_argnames="state",
)
"""`acckv_jax.decode`, jitted; `state` is donated."""

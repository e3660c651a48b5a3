"""The library's functions as compiled programs, for callers who have no jit of their own.

`prune` is not among them: called as it is, one compiled program serves all layers of equal size.

Example:
    >>> import acckv_jax as kv
    >>> from acckv_jax.testing import tiny_decoder
    >>> decoder, params, inputs, prompt = tiny_decoder()
    >>> logits, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
    >>> state = kv.start_decoding(logits, cache, jax.random.key(0))
    >>> tokens, number, state = kv.jitted.decode(decoder, params, state, kv.Knorm(budget=0.5), steps=16)
    >>> tokens.shape
    (1, 16)
"""

import jax

from acckv_jax import decoding, probing
from acckv_jax import prefill as reading

prefill = jax.jit(reading.prefill, static_argnames=("decoder", "policy", "reserved_slots"))
"""`acckv_jax.prefill`, jitted."""
score = jax.jit(reading.score, static_argnames=("decoder", "policies", "complete"))
"""`acckv_jax.score`, jitted."""
probe = jax.jit(probing.probe, static_argnames=("decoder", "policies"))
"""`acckv_jax.probe`, jitted."""
extend = jax.jit(reading.extend, static_argnames=("decoder", "policy", "reserved_slots"))
"""`acckv_jax.extend`, jitted."""
decode_step = jax.jit(decoding.decode_step, static_argnames=("decoder", "policy"), donate_argnames="cache")
"""`acckv_jax.decode_step`, jitted; `cache` is donated."""
decode = jax.jit(
    decoding.decode,
    static_argnames=("decoder", "policy", "steps", "sampler"),
    donate_argnames="state",
)
"""`acckv_jax.decode`, jitted; `state` is donated. Of the stop tokens only the number is static."""

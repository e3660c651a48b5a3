"""A one-layer "decoder" that replays recorded queries, keys and values: attention and policies without a model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax as kv


class Recording(NamedTuple):
    """q [B, T, N, H], k and v [B, T, K, H] of all tokens, prompt and generated alike, by position; W_O [N, H, D]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    output_weights: jax.Array | None = None


def replay_layers(recordings, inputs, positions, caches, carry, attend, logit_positions):
    """Follows `acckv_jax.StepFn`, a recording for each layer as parameters; the logits are the last layer's output."""
    after = []
    for number, (recording, cache) in enumerate(zip(recordings, caches, strict=True)):
        q, k, v = (jax.vmap(lambda tokens, at: tokens[at])(x, positions) for x in recording[:3])
        more = {} if recording.output_weights is None else {"output_weights": recording.output_weights}
        out, cache, carry = attend(number, q, k, v, cache, carry, **more)
        after.append(cache)
    out = jax.vmap(lambda tokens, row: tokens[row])(out, logit_positions)
    return out.reshape(out.shape[0], -1), tuple(after), carry


def replay(recording, *call):
    """`replay_layers` of one layer."""
    return replay_layers([recording], *call)


DECODER = kv.Decoder(replay, num_layers=1)


def record(*parts: tuple) -> Recording:
    """Joins (q, k, v) parts, each [T, heads, H], into a recording of one row in float32."""
    return Recording(*(jnp.asarray(np.concatenate(x)[None], jnp.float32) for x in zip(*parts, strict=True)))

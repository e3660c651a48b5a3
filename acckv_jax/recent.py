"""The queries of the last tokens, which a layer keeps beside its slots for policies that read them between steps."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.cache import LayerCache
from acckv_jax.kernels.windows import window_rows


def with_recent_queries(
    layer: LayerCache, q: Float[Array, "B T N H"], length: Int[Array, " B"], number: int
) -> LayerCache:
    """The layer with the queries of its last tokens, of which `q` holds the newest `length`; none if `number` is 0.

    Args:
        layer: whose `recent_queries` are those before; None: there are none before.
        q: [B, T, N, H] rotated queries, padded on the right.
        length: [B] how many of the T are tokens.
        number: how many queries are kept (static).
    """
    if not number:
        return dataclasses.replace(layer, recent_queries=None)
    new, before = q.swapaxes(1, 2), layer.recent_queries
    if before is None:
        every = jnp.pad(new, ((0, 0), (0, 0), (number, 0), (0, 0)))
    else:
        every = jnp.concatenate([before.astype(new.dtype), new], axis=2)
    return dataclasses.replace(layer, recent_queries=window_rows(every, length, number, axis=2))


def recent_count(layer: LayerCache) -> int:
    """How many queries a layer keeps."""
    return 0 if layer.recent_queries is None else layer.recent_queries.shape[-2]

"""A second pass over a prompt that was read: what further tokens attend to in it.

scored = probe(decoder, params, instruction_and_answer, their_prompt, scored, (KVzip(),))
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from acckv_jax.attention import attend
from acckv_jax.cache import LayerCache, append, widen
from acckv_jax.decoder import Decoder, check_decoder
from acckv_jax.modality import Prompt
from acckv_jax.policy import CachePolicy, check_policy
from acckv_jax.prefill import (
    check_positions,
    check_rows,
    chunk_layer,
    chunk_queries,
    clean,
    flagged_outputs,
    query_sets,
    query_weights,
)
from acckv_jax.pruning import owned
from acckv_jax.queries import UNPROBED
from acckv_jax.scored import Scored
from acckv_jax.stacks import stacks_of


def probe(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    scored: Scored,
    policies: Iterable[CachePolicy],
    *,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
) -> Scored:
    """A second pass over a prompt: what further tokens attend to in it, for policies that read that (`KVzip`).

    The tokens follow the prompt (or its beginning, if more of it is to come), and are forgotten afterwards. Several
    probes add up: each follows the prompt and does not know the others. Tokens of the prompt that are read after a
    probe were not seen by it; they stay. The pass costs what as many tokens of a question cost.

    Args:
        decoder: the decoder (static).
        params: its parameters.
        inputs: the tokens as the decoder takes them, padded on the right to T.
        prompt: their modalities and lengths.
        scored: the prompt.
        policies: whose statistics are wanted (static).
        positions: rotary positions of the tokens, if they are not those that follow.

    Returns:
        The prompt with these statistics as well, for `prune`.

    Raises:
        ValueError: if no policy reads a second pass, or the rows are not those of the prompt.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> policy = kv.KVzip(budget=0.5)
        >>> _, scored = kv.jitted.score(decoder, params, inputs, prompt, (policy,))
        >>> scored = kv.jitted.probe(decoder, params, inputs, prompt, scored, (policy,))  # it repeats itself
        >>> kv.prune(scored, policy).layers[0].slots
        32
    """
    check_decoder(decoder)
    policies = tuple(policies)
    for policy in policies:
        check_policy(policy)
    check_positions(positions, prompt)
    check_rows(prompt, scored.cache)
    sets = tuple(queries for queries in query_sets(policies) if queries.rows == "probe")
    if not sets:
        raise ValueError("no policy reads a second pass over the prompt: leave probe out, and prune what was scored.")
    cache = scored.cache
    queries = chunk_queries(prompt, cache.length, cache.length + prompt.length)
    weights = query_weights(sets, queries)

    def attention(
        _: int | Array, q: Array, k: Array, v: Array, past: tuple[LayerCache], carry: Any, **given: Array
    ) -> tuple[Array, tuple[tuple[Array, ...], Array], Any]:
        (before,) = past
        layer = append(widen(before, k.shape[1]), chunk_layer(k, v, queries))
        out, sums = attend(
            clean(q, queries), layer, queries.index, weights, aligned=True, implementation=decoder.attention
        )
        layer = flagged_outputs(layer, sums, out, queries)
        return out, (tuple(x[..., : before.slots] for x in sums), layer.finite), carry

    where = queries.index + cache.delta[:, None] if positions is None else positions
    _, found, _ = decoder.run(params, inputs, where, stacks_of(cache.stacks), (), attention, prompt.length - 1)
    new, finite = zip(*found, strict=True)
    stacks = tuple(dataclasses.replace(one, finite=flags) for one, flags in zip(cache.stacks, finite, strict=True))
    names = (*scored.queries, *(one for one in sets if one not in scored.queries))
    sums = []
    for old_sums, new_sums in zip(scored.sums, new, strict=True):
        own = dict(zip(scored.queries, old_sums, strict=True))
        for name, stat, newer in zip(sets, weights, new_sums, strict=True):
            seen = own.get(name)
            own[name] = newer if seen is None else stat.combined(jnp.where(seen == UNPROBED, 0.0, seen), newer)
        sums.append(tuple(own[name] for name in names))
    return dataclasses.replace(
        scored, cache=owned(dataclasses.replace(cache, stacks=stacks)), sums=tuple(sums), queries=names
    )

"""Reading a prompt, and pruning it on the way, as pure functions over any decoder that follows `StepFn`.

    logits, cache = prefill(decoder, params, inputs, prompt, policy, reserved_slots=64)

`prefill` compresses each layer before the next one runs. `score` and `prune` are the same in two parts, for many
budgets or many questions over one prompt; `extend` appends to a cache that was pruned. All run inside a caller's jit,
scan, vmap and shard_map; host checks are apart.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from acckv_jax.attention import QueryWeights, attend
from acckv_jax.cache import (
    KVCache,
    LayerCache,
    append,
    flagged,
    full_layer,
    reserve,
    stack,
    store_like,
    unstack,
    widen,
    with_mass,
)
from acckv_jax.decoder import Decoder, check_decoder
from acckv_jax.modality import Prompt
from acckv_jax.policy import CachePolicy, check_policy
from acckv_jax.pruning import Room, check_reserved, initial_carry, kinds, owned, prune_layer, rooms_of
from acckv_jax.queries import UNFINISHED, UNPROBED, Queries, QuerySet
from acckv_jax.recent import recent_count, with_recent_queries
from acckv_jax.scored import TOKENWISE, Scored
from acckv_jax.stacks import Stack, grouped, stacks_of


def prefill(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policy: CachePolicy,
    *,
    reserved_slots: int = 0,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Runs a prompt and prunes each layer before the next one runs; the logits are those of the uncompressed model.

    Args:
        decoder: the decoder (static).
        params: its parameters.
        inputs: the prompt as the decoder takes it, padded on the right to T tokens.
        prompt: modalities and lengths; check it first with `policy.check`.
        policy: what to keep (static).
        reserved_slots: slots for new tokens (static), see `CachePolicy.reserved_slots`.
        positions: rotary positions, if they are not 0..T-1.
        delta: [B] position of the first new token minus its index, if not 0.

    Returns:
        Logits [B, V] of each row's last token, and the pruned cache.

    Raises:
        ValueError: if `reserved_slots` is negative, the decoder attends with another number of tokens than the prompt
            has, or it does not hand on what the policy needs.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> read = jax.jit(kv.prefill, static_argnames=("decoder", "policy", "reserved_slots"))
        >>> logits, cache = read(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> [layer.slots for layer in cache.layers]  # half of 64, and 16
        [48, 48]
    """
    check_decoder(decoder)
    check_policy(policy)
    if policy.second_pass:
        raise ValueError(
            f"{type(policy).__name__} reads what further tokens attend to in the prompt, and prefill is one pass: call "
            "score, probe and prune instead."
        )
    policy = policy.for_layers(decoder.num_layers)
    check_reserved(reserved_slots)
    check_positions(positions, prompt, delta)
    queries = chunk_queries(prompt, jnp.zeros_like(prompt.length), prompt.length)
    weights = dict(zip(policy.queries, query_weights(policy.queries, queries), strict=True))
    rows = KVCache((), prompt.length, jnp.zeros_like(prompt.length) if delta is None else delta)

    rooms = rooms_of(policy, prompt.modality.shape[1], range(decoder.num_layers))
    first_carry = initial_carry(policy, prompt.modality)
    stacks = tuple(Stack(room, first, n) for first, n, room in grouped(rooms, scans=decoder.scans))

    def attention(
        layer: int | Array, q: Array, k: Array, v: Array, room: Room, carry: Any, **given: Array
    ) -> tuple[Array, LayerCache, Any]:
        full, wanted = chunk_layer(k, v, queries), tuple(weights[one] for one in room.queries)
        q = clean(q, queries)
        out, sums = attend(q, full, queries.index, wanted, aligned=True, implementation=decoder.attention)
        full = with_recent_queries(flagged_outputs(full, sums, out, queries), q, prompt.length, policy.recent_queries)
        found = _needed((policy,), given, queries)
        if jax.tree.structure(carry) != jax.tree.structure(first_carry):
            raise ValueError(
                f"attend was called with a carry of {kinds(carry)}, where {type(policy).__name__} needs one of "
                f"{kinds(first_carry)}: hand what attend returned for one layer on to the next."
            )
        place = (layer, decoder.num_layers, room)
        pruned, carry = prune_layer(policy, full, sums, found, carry, rows, place, reserved_slots)
        # Else XLA puts off what no later layer needs, such as all layers' NaN flags, and keeps what they are made from.
        return jax.lax.optimization_barrier((out, pruned, carry))

    logits, cached, _ = decoder.run(
        params,
        inputs,
        queries.index if positions is None else positions,
        stacks,
        first_carry,
        attention,
        prompt.length - 1,
    )
    return logits, owned(dataclasses.replace(rows, stacks=cached))


def score(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    policies: Iterable[CachePolicy],
    *,
    before: Scored | None = None,
    complete: bool = True,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], Scored]:
    """Runs a chunk of a prompt after what came `before`, keeping all of it and the statistics of all `policies`.

    Those of a second pass come from `probe`.

    Column sums are additive over chunks, so a prompt in chunks gives what it gives in one piece. The last
    `policy.window` tokens of every row must come in one chunk (of ragged rows only the longest can be checked here).

    Args:
        decoder: the decoder (static).
        params: its parameters.
        inputs: the chunk as the decoder takes it, padded on the right to T tokens.
        prompt: modalities and lengths of the chunk.
        policies: whose statistics are wanted (static), whatever their budgets; the same for all chunks.
        before: the chunks before, if any.
        complete: whether this chunk is the last (static).
        positions: rotary positions of the chunk, if they are not those that follow `before`.
        delta: [B] position of the first new token minus its index, if not as before.

    Returns:
        Logits [B, V] of each row's last token of the chunk, and the prompt so far.

    Raises:
        ValueError: if the chunk cannot follow `before`, is too short for a policy's window, or is not of the size that
            the decoder attends with, or the decoder does not hand on what a policy needs.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> logits, scored = kv.jitted.score(decoder, params, inputs, prompt, (kv.H2O(), kv.SnapKV(window_size=8)))
        >>> len(scored.queries), scored.cache.layers[0].slots
        (2, 64)
    """
    check_decoder(decoder)
    policies = tuple(policies)
    for policy in policies:
        check_policy(policy)
    check_positions(positions, prompt, delta)
    sets = tuple(queries for queries in query_sets(policies) if queries.rows != "probe")
    probed = () if before is None else before.queries[len(sets) :]
    window = max((policy.window for policy in policies), default=0)
    recent = max((policy.recent_queries for policy in policies), default=0)
    if before is not None and (
        before.queries[: len(sets)] != sets
        or any(queries.rows != "probe" for queries in probed)
        or before.complete
        or recent_count(before.cache.stacks[0]) != recent
    ):
        raise ValueError(
            "a chunk must follow an incomplete prompt (complete=False) that was scored by the same policies."
        )
    short = [p for p in policies if p.window > prompt.modality.shape[1]]
    if before is not None and complete and short:
        raise ValueError(
            f"{type(short[0]).__name__} looks at the last {short[0].window} tokens, and the last chunk has only "
            f"{prompt.modality.shape[1]}: split the prompt earlier, or choose a smaller window."
        )
    if before is not None:
        check_rows(prompt, before.cache)
    start = jnp.zeros_like(prompt.length) if before is None else before.cache.length
    shift = jnp.zeros_like(start) if before is None else before.cache.delta
    total = start + prompt.length
    queries = chunk_queries(prompt, start, total if complete else jnp.full_like(total, UNFINISHED))
    weights = query_weights(sets, queries)

    def attention(
        _: int | Array, q: Array, k: Array, v: Array, past: Any, carry: Any, **given: Array
    ) -> tuple[Array, tuple, Any]:
        full, found = chunk_layer(k, v, queries), _needed(policies, given, queries)
        if past is not None:
            cached, old_sums, old_inputs = past
            full = append(widen(cached, k.shape[1]), full)
            found = {name: _joined(name, old_inputs[name], x) for name, x in found.items()}
        q = clean(q, queries)
        out, sums = attend(q, full, queries.index, weights, aligned=True, implementation=decoder.attention)
        full = with_recent_queries(flagged_outputs(full, sums, out, queries), q, prompt.length, recent)
        if past is not None:
            earlier = zip(sets, old_sums, strict=False)  # those of a probe come last
            old = [_widened(one.still_counted(x, queries), k.shape[1], 0.0) for one, x in earlier]
            sums = tuple(stat.combined(*both) for stat, *both in zip(weights, old, sums, strict=True))
            sums += tuple(_widened(x, k.shape[1], UNPROBED) for x in old_sums[len(sets) :])
        return out, (full, sums, found), carry

    if before is None:
        stacks = tuple(Stack(None, *at) for *at, _ in grouped([None] * decoder.num_layers, scans=decoder.scans))
    else:
        stacks = stacks_of(before.cache.stacks, before.sums, before.inputs)
    logits, layers, _ = decoder.run(
        params,
        inputs,
        queries.index + shift[:, None] if positions is None else positions,
        stacks,
        (),
        attention,
        prompt.length - 1,
    )
    cached, sums, found = zip(*layers, strict=True)
    cache = owned(KVCache(cached, total, shift if delta is None else delta))
    return logits, Scored(cache, sums, found, sets + probed, window, complete)


def extend(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    cache: KVCache,
    policy: CachePolicy,
    *,
    reserved_slots: int = 0,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
    delta: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], KVCache]:
    """Appends tokens (a second question) to a cache that may have been pruned; nothing is dropped.

    The layers grow by T slots, the rows' budgets by their new tokens, and positions follow the uncompressed length. The
    last token of an answer is not in the cache that decoding returns: begin the question with it, as `generate` does.

    Args:
        decoder: the decoder (static).
        params: its parameters.
        inputs: the new tokens as the decoder takes them, padded on the right to T tokens.
        prompt: their modalities and lengths.
        cache: the cache.
        policy: of the cache (static).
        reserved_slots: further slots for new tokens (static), beside those that are still free.
        positions: rotary positions of the new tokens, if they do not simply follow.
        delta: [B] position of the next token minus its index, if not as before.

    Returns:
        Logits [B, V] of each row's last new token, and the cache.

    Raises:
        ValueError: if `reserved_slots` is negative, or the decoder attends with another number of tokens than the
            prompt has.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> _, cache = kv.jitted.prefill(decoder, params, inputs, prompt, kv.Knorm(budget=0.5), reserved_slots=16)
        >>> question = kv.make_prompt(np.zeros((1, 8), int))
        >>> _, cache = kv.jitted.extend(decoder, params, inputs[:, :8], question, cache, kv.Knorm(budget=0.5))
        >>> cache.layers[0].slots, cache.length.tolist()
        (56, [72])
    """
    check_decoder(decoder)
    check_policy(policy)
    check_reserved(reserved_slots)
    check_positions(positions, prompt, delta)
    check_rows(prompt, cache)
    queries = chunk_queries(prompt, cache.length, cache.length + prompt.length)
    ones = (QueryWeights(queries.valid.astype(jnp.float32)),) if policy.mass_queries is not None else ()

    def attention(
        _: int | Array, q: Array, k: Array, v: Array, past: tuple[LayerCache], carry: Any, **given: Array
    ) -> tuple[Array, LayerCache, Any]:
        (past_layer,) = past
        new = chunk_layer(k, v, queries)
        layer, q = append(reserve(widen(past_layer, new.slots), reserved_slots), new), clean(q, queries)
        out, sums = attend(q, layer, queries.index, ones, log_multiplicity=policy.log_multiplicity)
        layer = flagged_outputs(with_mass(layer, sums), sums, out, queries)
        layer = with_recent_queries(layer, q, prompt.length, recent_count(layer))
        layer = dataclasses.replace(layer, budget=layer.budget + prompt.length)
        return out, store_like(layer, past_layer), carry

    where = queries.index + cache.delta[:, None] if positions is None else positions
    stacks = stacks_of((stack(cache) if decoder.scans else unstack(cache)).stacks)
    logits, layers, _ = decoder.run(params, inputs, where, stacks, (), attention, prompt.length - 1)
    return logits, owned(KVCache(layers, queries.total, cache.delta if delta is None else delta))


def query_sets(policies: Iterable[CachePolicy]) -> tuple[QuerySet, ...]:
    """All query sets of the policies, each once."""
    return tuple(dict.fromkeys(queries for policy in policies for queries in policy.queries))


def _widened(sums: Float[Array, "B K S"], slots: int, value: float) -> Float[Array, "B K C"]:
    return jnp.pad(sums, ((0, 0), (0, 0), (0, slots)), constant_values=value)


def chunk_queries(prompt: Prompt, start: Int[Array, " B"], total: Int[Array, " B"]) -> Queries:
    """The rows of a chunk that begins at `start` in a prompt of `total` tokens."""
    index = start[:, None] + jnp.arange(prompt.modality.shape[1], dtype=jnp.int32)[None, :]
    return Queries(index, prompt.modality, prompt.valid, total)


def query_weights(sets: tuple[QuerySet, ...], queries: Queries) -> tuple[QueryWeights, ...]:
    """The rows' weights in each set."""
    return tuple(QueryWeights(one.weights(queries), one.exclude_diagonal, one.last, one.reduce) for one in sets)


def check_rows(prompt: Prompt, cache: KVCache) -> None:
    """Checks that a chunk has as many rows as what it follows.

    Raises:
        ValueError: if not.
    """
    rows, others = prompt.length.shape[0], cache.length.shape[0]
    if rows != others:
        raise ValueError(f"the prompt has {rows} rows, and what it follows has {others}; they must be as many.")


def check_positions(positions: Any, prompt: Prompt, delta: Any = None) -> None:
    """Checks that positions and their distance to indices are integers of the prompt's size.

    Raises:
        ValueError: if not.
    """
    if positions is not None and (positions.ndim not in (2, 3) or positions.shape[-2:] != prompt.modality.shape):
        raise ValueError(
            f"positions are [B, T] or [A, B, T] for a prompt of [B, T] = {list(prompt.modality.shape)} tokens, not of "
            f"shape {list(positions.shape)}."
        )
    for name, given in (("positions", positions), ("delta", delta)):
        if given is not None and not jnp.issubdtype(jnp.result_type(given), jnp.integer):
            raise ValueError(f"{name} are integers, not {jnp.result_type(given)}.")
    if delta is not None and jnp.shape(delta) != prompt.length.shape:
        raise ValueError(
            f"delta is one number for each row, of shape {list(prompt.length.shape)}, not {list(jnp.shape(delta))}."
        )


def _needed(policies: tuple[CachePolicy, ...], given: dict[str, Array], queries: Queries) -> dict[str, Array]:
    """The inputs that the policies need, of those that the decoder gave; padding is zero.

    Raises:
        ValueError: naming what is missing.
    """
    for policy in policies:
        for name in policy.needs:
            if name not in given:
                raise ValueError(
                    f"{type(policy).__name__} needs {name}, which this decoder does not hand on; call "
                    f"attend(layer, q, k, v, cache, carry, {name}=...), or choose another policy."
                )
    found = {name: given[name] for policy in policies for name in policy.needs}
    for name in TOKENWISE:
        if name in found:
            x = found[name]
            found[name] = jnp.where(queries.valid.reshape(*queries.valid.shape, *(1,) * (x.ndim - 2)), x, 0)
    return found


def _joined(name: str, old: Array, new: Array) -> Array:
    return jnp.concatenate([old, new], axis=1) if name in TOKENWISE else new


def chunk_layer(k: Float[Array, "B T K H"], v: Float[Array, "B T K H"], queries: Queries) -> LayerCache:
    """The layer of a chunk, after checking that inputs and prompt are of one size."""
    rows, tokens = queries.index.shape
    if k.shape[:2] != (rows, tokens):
        raise ValueError(
            f"the prompt has {rows} rows of {tokens} tokens, but the decoder attends with {k.shape[0]} rows of "
            f"{k.shape[1]}: pad the inputs to the prompt's size (q, k and v have tokens before heads)."
        )
    return full_layer(k, v, queries.index, queries.modality, queries.valid)


def clean(q: Float[Array, "B T N H"], queries: Queries) -> Float[Array, "B T N H"]:
    """Queries of padding become zero: a NaN there would survive its weight of zero in the column sums."""
    return jnp.where(queries.valid[..., None, None], q, 0)


def flagged_outputs(
    layer: LayerCache, sums: tuple[Array, ...], out: Float[Array, "B T N H"], queries: Queries
) -> LayerCache:
    """`flagged` by the outputs of real rows and the scores of real slots (keys and values were looked at before)."""
    layer = flagged(layer, jnp.where(queries.valid[..., None, None], out, 0))
    for x in sums:
        layer = flagged(layer, jnp.where(layer.valid, x, 0))
    return layer

"""Attention without a cache, as the reference for every cached run: all tokens at once, one mask per layer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from acckv_jax.storage import SlotStorage


class Late(NamedTuple):
    """What rows after the prompt see instead of the prompt's own keys and values, where slots were merged.

    rows: [B, T] which rows are late; merged: [B, T, K] which tokens carry a merged slot; k, v: [B, T, K, H] what
    it holds; multiplicity: [B, T, K] added to the logits as a logarithm (1 for no effect).
    """

    rows: Any
    merged: Any
    k: Any
    v: Any
    multiplicity: Any


def dense_attend(masks: tuple, late: tuple = ()):
    """An `attend` for whole sequences: layer number n sees masks[n] ([B, K, T, T] bool); K and V are repeated."""

    def attend(number, q, k, v, cache, carry, **inputs):
        group = q.shape[2] // k.shape[2]
        mask = jnp.repeat(masks[number], group, axis=1)

        def over(keys, values, bias):
            keys, values, bias = (jnp.repeat(x, group, axis=2) for x in (keys, values, bias))
            logits = jnp.einsum("btnh,bsnh->bnts", q, keys) * q.shape[-1] ** -0.5
            logits = logits + bias.transpose(0, 2, 1)[:, :, None, :]
            weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
            return jnp.einsum("bnts,bsnh->btnh", weights, values)

        out = over(k, v, jnp.zeros_like(k[..., 0]))
        if late:
            rows, merged, new_k, new_v, multiplicity = late[number]
            choose = merged[..., None]
            later = over(jnp.where(choose, new_k, k), jnp.where(choose, new_v, v), jnp.log(multiplicity))
            out = jnp.where(rows[..., None, None], later, out)
        return out, cache, carry

    return attend


@functools.partial(jax.jit, static_argnames="model")
def dense_logits(model, params, tokens, rows, masks, late=()):
    """Logits [R, B, V] of rows [R, B] of sequences `tokens` [B, T]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    attend = dense_attend(masks, late)
    nothing = (None,) * model.layers
    return jax.vmap(lambda r: model(params, tokens, positions, nothing, (), attend, r)[0])(rows)


def causal(rows: int, tokens: int, kv_heads: int) -> np.ndarray:
    """[B, K, T, T] lower triangle."""
    return np.broadcast_to(np.tri(tokens, dtype=bool), (rows, kv_heads, tokens, tokens))


def episode_masks(inputs, episode) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """An episode as sequences without a cache.

    Returns:
        tokens [B, T]; the rows [R, B] after which the episode gave logits (prompt, decode steps, question); per layer
        the mask [B, K, T, T] of what each row could still see in the pruned cache.
    """
    lengths, questions = np.asarray(inputs.prompt.length), np.asarray(inputs.question_prompt.length)
    steps, batch = inputs.forced.shape
    parts = [
        (inputs.tokens[b, : lengths[b]], inputs.forced[:, b], inputs.question[b, : questions[b]]) for b in range(batch)
    ]
    width = inputs.tokens.shape[1] + steps + inputs.question.shape[1]
    tokens = np.zeros((batch, width), np.int32)
    for b, part in enumerate(parts):
        whole = np.concatenate(part)
        tokens[b, : len(whole)] = whole
    rows = np.stack([lengths - 1 + t for t in range(steps + 1)] + [lengths + steps + questions - 1])
    masks = []
    for layer, (index, valid) in enumerate(episode.kept):
        first = episode.pruned.layers[layer]
        mask = causal(batch, width, index.shape[2]).copy()
        for b, h in np.ndindex(*mask.shape[:2]):
            kept = [first.index[b, h][first.valid[b, h]]] + [index[t, b, h][valid[t, b, h]] for t in range(steps)]
            for t in range(steps):
                mask[b, h, lengths[b] + t, : lengths[b] + t] = False
                mask[b, h, lengths[b] + t, kept[t]] = True
            after = mask[b, h, lengths[b] + steps :]
            after[:, : lengths[b] + steps] = False
            after[:, kept[steps]] = True
        masks.append(mask)
    return tokens, rows, masks


def merged_slots(inputs, episode, width: int, log_multiplicity: bool) -> tuple[Late, ...]:
    """Merged and quantised slots of an episode, put at the tokens whose place they took."""
    lengths = np.asarray(inputs.prompt.length)
    result = []
    for layer in episode.pruned.layers:
        batch, kv_heads, _, size = layer.keys.shape
        k, v = (np.zeros((batch, width, kv_heads, size), np.float32) for _ in range(2))
        multiplicity = np.ones((batch, width, kv_heads), np.float32)
        merged = np.zeros((batch, width, kv_heads), bool)
        for b, h in np.ndindex(batch, kv_heads):
            changed = isinstance(layer.k, SlotStorage) | (layer.multiplicity[b, h] > 1)
            slots = np.flatnonzero(layer.valid[b, h] & changed)
            at = layer.index[b, h, slots]
            merged[b, at, h] = True
            k[b, at, h], v[b, at, h] = layer.keys[b, h, slots], layer.values[b, h, slots]
            multiplicity[b, at, h] = layer.multiplicity[b, h, slots]
        late = np.arange(width)[None] >= lengths[:, None]
        weight = multiplicity if log_multiplicity else np.ones_like(multiplicity)
        result.append(Late(late, merged, k, v, weight))
    return tuple(result)

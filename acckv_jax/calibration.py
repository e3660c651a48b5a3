"""Budgets of layers from a calibration run, as shares for `PerLayer`: capacities are static, no prompt can set them.

shares = vl_cache_shares(decoder, params, inputs, prompt, budget=0.1)  # a batch of prompts like those to come
policy = PerLayer(VLCache(budget=0.1), shares)
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from acckv_jax import jitted
from acckv_jax.attention import attend
from acckv_jax.budget import Budget, check_budget
from acckv_jax.cache import LayerCache
from acckv_jax.decoder import Decoder
from acckv_jax.kernels.row_blocks import CPU_BLOCK
from acckv_jax.modality import Modality, Prompt
from acckv_jax.policies.omni_mem import OmniMem, compressibility
from acckv_jax.policy import Context
from acckv_jax.prefill import chunk_layer, chunk_queries, clean
from acckv_jax.queries import QuerySet
from acckv_jax.sharding import on_host
from acckv_jax.stacks import Stack, grouped


def vl_cache_shares(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    budget: Budget,
    *,
    threshold: float = 0.01,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
) -> tuple[float, ...]:
    """Shares of layers by how dense the attention of the rows after the media is (VL-Cache, section 4.1).

    The density of a layer is the share of entries, of those that these rows can see, that are at least `threshold`
    times the largest of their row; its mean over heads and prompts. Budgets are in proportion to it, but at least 1 %
    of the prompt and at most all of it.

    Args:
        decoder: the decoder.
        params: its parameters.
        inputs: prompts as the decoder takes them, padded on the right.
        prompt: their modalities and lengths.
        budget: of the policy, for which the shares are.
        threshold: of an entry that counts, relative to its row's largest.
        positions: rotary positions, if they are not 0..T-1.

    Returns:
        One share for each layer, whose mean is 1 unless a bound is met.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> shares = kv.vl_cache_shares(decoder, params, inputs, prompt, budget=0.25)
        >>> kv.PerLayer(kv.VLCache(budget=0.25), shares).check_layers(2)
    """
    check_budget(budget)
    density = on_host(_density(decoder, params, inputs, prompt, positions, threshold=threshold))
    return _bounded(density / density.mean(), budget)


def omni_mem_shares(
    decoder: Decoder,
    params: Any,
    inputs: Any,
    prompt: Prompt,
    budget: Budget,
    *,
    temperature: float = 0.2,
    positions: Int[Array, "B T"] | Int[Array, "A B T"] | None = None,
) -> tuple[float, ...]:
    """Shares of layers by how hard their media are to compress (OmniMem, equation 14).

    A softmax over layers of the entropy of the attention to media, over that of equal attention, times the media's mean
    novelty; its mean over prompts.

    Args:
        decoder: the decoder.
        params: its parameters.
        inputs: prompts as the decoder takes them, padded on the right.
        prompt: their modalities and lengths.
        budget: of the policy, for which the shares are: none is more than the whole prompt.
        temperature: of the softmax; a smaller one makes layers more unequal.
        positions: rotary positions, if they are not 0..T-1.

    Returns:
        One share for each layer, whose mean is 1 unless a bound is met.

    Raises:
        ValueError: if the temperature is not above 0.

    Example:
        >>> import acckv_jax as kv
        >>> from acckv_jax.testing import tiny_decoder
        >>> decoder, params, inputs, prompt = tiny_decoder()
        >>> shares = kv.omni_mem_shares(decoder, params, inputs, prompt, budget=0.25)
        >>> kv.PerLayer(kv.OmniMem(budget=0.25), shares).check_layers(2)
    """
    check_budget(budget)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")
    policy = OmniMem()
    _, scored = jitted.score(decoder, params, inputs, prompt, (policy,), positions=positions)
    found = []
    for stack, sums, given in zip(scored.cache.stacks, scored.sums, scored.inputs, strict=True):
        layers = [(stack, sums, given)]
        if stack.is_stack:
            layers = [jax.tree.map(lambda x, i=i: x[i], layers[0]) for i in range(stack.num_layers)]
        found += [float(on_host(_media_compressibility(*layer, scored.cache.length, policy))) for layer in layers]
    weight = np.exp((np.array(found) - max(found)) / temperature)
    return _bounded(weight / weight.mean(), budget)


def _bounded(shares: Float[np.ndarray, " L"], budget: Budget) -> tuple[float, ...]:
    """Shares of at least 1 % and at most all of the prompt, where the budget is a fraction of it; rounded down."""
    if isinstance(budget, float):
        shares = np.clip(shares, min(1.0, 0.01 / budget), 1.0 / budget)
    return tuple(max(math.floor(1e6 * share) / 1e6, 1e-6) for share in shares.tolist())


@functools.partial(jax.jit, static_argnames=("decoder", "threshold"))
def _density(
    decoder: Decoder, params: Any, inputs: Any, prompt: Prompt, positions: Array | None, *, threshold: float
) -> Float[Array, " L"]:
    """Of each layer, what share of the attention of the rows after the media is not small."""
    queries = chunk_queries(prompt, jnp.zeros_like(prompt.length), prompt.length)
    rows = QuerySet(rows="after_media").weights(queries) > 0

    def attention(
        _: int | Array, q: Array, k: Array, v: Array, __: Any, carry: Any, **given: Array
    ) -> tuple[Array, Array, Any]:
        layer, q = chunk_layer(k, v, queries), clean(q, queries)
        out, _sums = attend(q, layer, queries.index, aligned=True, implementation=decoder.attention)
        return out, _dense_share(q, layer, queries.index, rows, threshold), carry

    stacks = tuple(Stack(None, *at) for *at, _ in grouped([None] * decoder.num_layers, scans=decoder.scans))
    where = queries.index if positions is None else positions
    _, found, _ = decoder.run(params, inputs, where, stacks, (), attention, prompt.length - 1)
    return jnp.concatenate([jnp.atleast_1d(one) for one in found])


def _dense_share(
    q: Float[Array, "B T N H"], layer: LayerCache, index: Int[Array, "B T"], rows: Array, threshold: float
) -> Float[Array, ""]:
    """Of the entries that `rows` can see, the share that are at least `threshold` times their row's largest."""
    batch, tokens, heads, size = q.shape
    kv_heads = layer.index.shape[1]
    blocks = -(-tokens // CPU_BLOCK)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, blocks * CPU_BLOCK - tokens if axis == 1 else 0) for axis in range(x.ndim)])
        return jnp.moveaxis(padded.reshape(batch, blocks, CPU_BLOCK, *x.shape[2:]), 1, 0)

    def counted(block: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        some, at, wanted = block
        grouped_q = some.reshape(batch, CPU_BLOCK, kv_heads, heads // kv_heads, size)
        logits = jnp.einsum("btkgh,bksh->bkgts", grouped_q, layer.keys, preferred_element_type=jnp.float32)
        seen = layer.valid[:, :, None] & (layer.index[:, :, None] <= at[:, None, :, None]) & wanted[:, None, :, None]
        logits = jnp.where(seen[:, :, None], logits * size**-0.5, -jnp.inf)
        large = logits >= logits.max(-1, keepdims=True) + math.log(threshold)
        return (large & seen[:, :, None]).sum((3, 4), dtype=jnp.int32), seen.sum((2, 3), dtype=jnp.int32)

    large, seen = jax.lax.map(counted, (split(q), split(index), split(rows)))
    return (large.sum(0) / jnp.maximum(seen.sum(0), 1)[:, :, None]).mean()


@functools.partial(jax.jit, static_argnames="policy")
def _media_compressibility(
    layer: LayerCache, sums: tuple[Array, ...], inputs: dict[str, Array], length: Int[Array, " B"], policy: OmniMem
) -> Float[Array, ""]:
    """Of one layer, the mean over prompts."""
    context = Context(jnp.int32(0), length, length, length, sums, inputs=inputs, queries=policy.queries)
    media = layer.valid & ((layer.modality == Modality.VIDEO) | (layer.modality == Modality.AUDIO))
    return compressibility(*policy.measured(layer, context), media.any(1)).mean()

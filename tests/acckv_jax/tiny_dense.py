"""`acckv_jax.testing.TinyTransformer` without a cache, in NumPy: what policies may read of every layer."""

import functools
from typing import NamedTuple

import jax
import numpy as np

import acckv_jax as kv
from acckv_jax.testing import TinyTransformer, tiny_decoder

TOKENS = 64


@functools.cache
def distinct_tokens(*, layers: int = 2, scans: bool = False) -> tuple[kv.Decoder, dict, np.ndarray, kv.Prompt]:
    """`tiny_decoder` of so many layers, and a prompt without a token twice: equal keys would tie."""
    model = TinyTransformer(num_layers=layers, scans=scans)
    ids = np.random.default_rng(2).permutation(TOKENS)[None].astype(np.int32)
    scales = {"embed": 4, "q": 4, "o": 2}  # else all attention would be nearly equal
    params = model.init(jax.random.key(3), TOKENS)
    params = {name: np.asarray(x) * np.float32(scales.get(name, 1)) for name, x in params.items()}
    return kv.Decoder(model, layers, scans), params, ids, tiny_decoder()[3]


class Layer(NamedTuple):
    """Of one layer, in float64: its input [B, T, D], queries [B, N, T, H], keys and values [B, K, T, H], and the
    attention of every row [B, N, T, T].
    """

    x: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    attention: np.ndarray

    @property
    def by_group(self) -> np.ndarray:
        """[B, K, T, T] mean of the attention over the query heads of a KV head."""
        rows, heads, tokens, _ = self.attention.shape
        kv_heads = self.k.shape[1]
        return self.attention.reshape(rows, kv_heads, heads // kv_heads, tokens, tokens).mean(2)


def dense_run(params: dict, inputs: np.ndarray) -> list[Layer]:
    """Every layer of a prompt without padding."""
    x, found = np.asarray(params["embed"], float)[inputs], []
    for number in range(len(params["q"])):
        q, k, v = (np.einsum("btd,dnh->bnth", x, np.asarray(params[name][number], float)) for name in "qkv")
        group = q.shape[1] // k.shape[1]
        logits = np.einsum("bnth,bnsh->bnts", q, np.repeat(k, group, 1)) / np.sqrt(q.shape[-1])
        seen = np.where(np.tri(x.shape[1], dtype=bool), logits, -np.inf)
        weights = np.exp(seen - seen.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found.append(Layer(x, q, k, v, weights))
        out = np.einsum("bnts,bnsh->bnth", weights, np.repeat(v, group, 1))
        x = x + np.einsum("bnth,nhd->btd", out, np.asarray(params["o"][number], float))
    return found

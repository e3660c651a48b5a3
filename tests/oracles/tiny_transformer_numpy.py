"""The decoder of `acckv_jax.testing` in float64 NumPy, without a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tests.oracles.attention_numpy import Floats


class Layer(NamedTuple):
    """Layer inputs x [B, T, D], values v [B, K, T, H] and attention probabilities [B, N, T, T]."""

    x: Floats
    v: Floats
    attention: Floats


def dense_run(params: Mapping[str, Floats], tokens: np.ndarray) -> list[Layer]:
    """Every layer for token ids [B, T]."""
    x, found = np.asarray(params["embed"], float)[tokens], []
    for layer in range(len(params["q"])):
        q, k, v = (np.einsum("btd,dnh->bnth", x, np.asarray(params[name][layer], float)) for name in "qkv")
        group = q.shape[1] // k.shape[1]
        logits = np.einsum("bnth,bnsh->bnts", q, np.repeat(k, group, 1)) / np.sqrt(q.shape[-1])
        weights = np.exp(np.where(np.tri(x.shape[1], dtype=bool), logits, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        found.append(Layer(x, v, weights))
        out = np.einsum("bnts,bnsh->bnth", weights, np.repeat(v, group, 1))
        x = x + np.einsum("bnth,nhd->btd", out, np.asarray(params["o"][layer], float))
    return found

"""MergeNet's adapter (arXiv 2404.13322) in plain NumPy, float64, one head and one branch at a time.

Independent of `mergenet_jax` and of upstream's code. Weights are a flat dict under upstream's names; matrices stand as
[out, in].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray]

NORMED = ("dense_up", "dense_dowm")
"""The projections whose weight is divided by its largest singular value."""


def exact(tensors: Tensors) -> dict[str, Floats]:
    """The tensors in float64."""
    return {name: np.asarray(value, np.float64) for name, value in tensors.items()}


def layer_norm(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Rows of x with mean 0 and variance 1, times weight, plus bias."""
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12) * weight + bias


def gelu(x: Floats) -> Floats:
    """GELU in its approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def iterate(weights: Tensors, vectors: Tensors, times: int) -> dict[str, Floats]:
    """The singular vectors after power iterations: u = W v, then v = W^T u, each over its length."""
    found = exact(vectors)
    for at in (name.removesuffix("_u") for name in vectors if name.endswith("_u")):
        weight = np.asarray(weights[at.removesuffix("0.") + "original"], np.float64)
        for _ in range(times):
            u = weight @ found[at + "_v"]
            found[at + "_u"] = u / np.linalg.norm(u)
            v = weight.T @ found[at + "_u"]
            found[at + "_v"] = v / np.linalg.norm(v)
    return found


def attention(weights: Tensors, at: str, queries: Floats, source: Floats, heads: int) -> Floats:
    """LN(Q + attention of the rows of Q to the rows of the source)."""
    width = max((queries.shape[1] + source.shape[1]) // 2, 128) // heads
    q = queries @ weights[at + "fc_q.weight"].T + weights[at + "fc_q.bias"]
    k = source @ weights[at + "fc_k.weight"].T + weights[at + "fc_k.bias"]
    v = source @ weights[at + "fc_v.weight"].T + weights[at + "fc_v.bias"]
    mixed = np.empty_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        mixed[:, part] = odds / odds.sum(axis=1, keepdims=True) @ v[:, part]
    out = mixed @ weights[at + "fc_output.weight"].T + weights[at + "fc_output.bias"]
    return layer_norm(queries + out, weights[at + "norm.weight"], weights[at + "norm.bias"])


def normed_linear(weights: Tensors, vectors: Tensors, at: str, x: Floats) -> Floats:
    """x times the matrix over its largest singular value u^T W v, plus bias."""
    weight = weights[at + ".parametrizations.weight.original"]
    u, v = (vectors[f"{at}.parametrizations.weight.0.{name}"] for name in ("_u", "_v"))
    return x @ (weight / (u @ weight @ v)).T + weights[at + ".bias"]


def layer(weights: Tensors, vectors: Tensors, number: int, target: Floats, source: Floats, heads: int) -> Floats:
    """One knowledge-transfer layer without dropout: target [m, n], source [p, q], out [m, n]."""
    at = f"layer.{number}."
    mean = np.zeros_like(target)
    for over, queries in (("x", target), ("y", target.T)):
        for to, keys in (("x", source), ("y", source.T)):
            out = attention(weights, f"{at}attention_{over}_{to}.", queries, keys, heads)
            mean += (out if over == "x" else out.T) / 4
    up, down = (f"{at}output.{name}" for name in NORMED)
    hidden = gelu(normed_linear(weights, vectors, up, mean))
    out = mean + normed_linear(weights, vectors, down, hidden)
    return layer_norm(out, weights[f"{at}output.layernorm.weight"], weights[f"{at}output.layernorm.bias"])


def adapter(weights: Tensors, vectors: Tensors, target: NDArray, source: NDArray, layers: int, heads: int) -> Floats:
    """All layers; each sees the source as it is."""
    weights, vectors, source = exact(weights), exact(vectors), np.asarray(source, np.float64)
    out = np.asarray(target, np.float64)
    for number in range(layers):
        out = layer(weights, vectors, number, out, source, heads)
    return out


def slope(function: Callable[[Floats], float], at: NDArray, direction: NDArray) -> float:
    """The derivative of function at a point along a direction, by central differences."""
    step = 1e-4 / np.linalg.norm(direction)
    return float((function(at + step * direction) - function(at - step * direction)) / (2 * step))

"""The adapter: a stack of knowledge-transfer layers that reads one weight matrix and writes another.

MergeNet (arXiv 2404.13322), section on the low-rank parametric knowledge adapter; where the paper is silent, as the
authors' code has it (design: four cross-attentions, their mean, a spectrally normalised feed-forward layer).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mergenet_jax.attention import (
    Params,
    attention,
    dense,
    dense_from,
    dense_to,
    dropout,
    init_attention,
    init_norm,
    layer_norm,
    standardised,
)
from mergenet_jax.config import MergeConfig
from mergenet_jax.sharding import shares
from mergenet_jax.spectral import Vectors, init_spectral, normalised, power_iteration

Shape = tuple[int, int]
WAVELENGTHS = 1e4
TINY = 1e-12


def init_adapter(key: Array, target: Shape, source: Shape, config: MergeConfig) -> tuple[Params, Vectors]:
    """Parameters of an adapter, and the singular vectors of its spectral norms; layers are stacked.

    Args:
        key: random key.
        target: [m, n] of the matrix that is written.
        source: [p, q] of the matrix that is read.
        config: options.

    Raises:
        ValueError: if the matrices are too narrow for the number of heads.

    Example:
        >>> make = lambda key: mn.init_adapter(key, (3, 4), (3, 6), mn.MergeConfig.plus(layers=1))
        >>> weights, vectors = jax.eval_shape(make, jax.random.key(0))
        >>> sorted(weights["layers"])
        ['down', 'norm', 'up', 'x_x', 'x_y', 'y_x', 'y_y']
    """
    keys = jax.random.split(key, config.layers)
    layers, vectors = jax.vmap(lambda one: _init_layer(one, target, source, config))(keys)
    params: Params = {"layers": layers}
    if config.merge == "gated":
        # Only one of the two starts at zero: if both did, neither would have a gradient.
        n = target[1]
        params["gate"] = {"alpha": jnp.ones(()), "out": {"kernel": jnp.zeros((n, n)), "bias": jnp.zeros(n)}}
    return params, vectors


def _init_layer(key: Array, target: Shape, source: Shape, config: MergeConfig) -> tuple[Params, Vectors]:
    (m, n), (p, q) = target, source
    keys = iter(jax.random.split(key, 6))
    params = {
        name: init_attention(next(keys), queries, asked, config.heads)
        for name, queries, asked in (("x_x", n, q), ("x_y", n, p), ("y_x", m, q), ("y_y", m, p))
    }
    params["up"], up = init_spectral(next(keys), n, 2 * n)
    params["down"], down = init_spectral(next(keys), 2 * n, n)
    params["norm"] = init_norm(n)
    return params, {"up": up, "down": down}


def apply_adapter(
    params: Params,
    vectors: Vectors,
    target: Float[Array, "m n"],
    source: Float[Array, "p q"],
    config: MergeConfig,
    *,
    key: Array | None = None,
) -> tuple[Float[Array, "m n"], Vectors]:
    """The matrix that an adapter makes of two: what is written in the target's place.

    Args:
        params: of `init_adapter`.
        vectors: singular vectors, of `init_adapter`.
        target: the matrix as it is.
        source: the matrix that is read.
        config: options.
        key: for training: dropout is drawn from it, and each spectral norm takes a step of power iteration. Without
            it neither happens.

    Returns:
        The new matrix, in the target's type, and the new vectors.

    Example:
        >>> adapter = state.adapters[0]
        >>> weights, vectors = (jax.tree.map(lambda x: x[0], part[0]) for part in (adapter.params, adapter.vectors))
        >>> target, source = jnp.ones((3, 4)), jnp.ones((3, 6))
        >>> run = jax.jit(mn.apply_adapter, static_argnums=4)
        >>> new, _ = run(weights, vectors, target, source, transfers[0].config)
        >>> new.shape
        (3, 4)
    """
    old, read = target.astype(jnp.float32), source.astype(jnp.float32)
    keys = None if key is None else jax.random.split(key, config.layers)
    x, after = jax.lax.scan(  # one program for all layers
        lambda x, layer: _apply_layer(*layer[:2], x, read, config, layer[2]), old, (params["layers"], vectors, keys)
    )
    if config.merge == "gated":
        size = jnp.sqrt(jnp.mean(old * old))  # so that the residual is measured in the target's own scale
        x = old + params["gate"]["alpha"] * size * dense(params["gate"]["out"], x)
    return _rescaled(x, old, config).astype(target.dtype), after


def _apply_layer(
    params: Params, vectors: Vectors, x: Float[Array, "m n"], source: Float[Array, "p q"], config: MergeConfig, key: Any
) -> tuple[Float[Array, "m n"], Vectors]:
    if key is not None:
        vectors = {name: power_iteration(params[name]["kernel"], vectors[name]) for name in ("up", "down")}
    keys = [None] * 5 if key is None else list(jax.random.split(key, 5))

    def cross(name: str, queries: Array, keys_from: Array, one: Array | None) -> Array:
        asked, values = (standardised(h) if config.input_norm else h for h in (queries, keys_from))
        read = values
        if config.positions:
            asked, read = asked + _sinusoids(*asked.shape), read + _sinusoids(*read.shape)
        rate = config.attention_dropout
        return attention(params[name], queries, asked, read, values, heads=config.heads, rate=rate, key=one)

    rows = cross("x_x", x, source, keys[0]) + cross("x_y", x, source.T, keys[1])
    columns = cross("y_x", x.T, source, keys[2]) + cross("y_y", x.T, source.T, keys[3])
    mean = (rows + columns.T) / 4
    by_width, by_row = shares(2 * x.shape[1], len(x))
    h = dense_to(normalised(params["up"], vectors["up"]), mean, by_row, by_width)
    h = jax.nn.gelu(h, approximate=True)
    h = dense_from(normalised(params["down"], vectors["down"]), h, by_row, by_width)
    h = dropout(h, keys[4], config.output_dropout)
    return layer_norm(params["norm"], h + mean), vectors


def _sinusoids(count: int, features: int) -> Float[Array, "m n"]:
    """Positions of the rows, as in "Attention is all you need" (section 3.5): sines, then cosines."""
    rates = WAVELENGTHS ** (-2 / features * jnp.arange((features + 1) // 2, dtype=jnp.float32))
    angles = jnp.arange(count, dtype=jnp.float32)[:, None] * rates[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], 1)[:, :features]


def _rescaled(new: Float[Array, "m n"], old: Float[Array, "m n"], config: MergeConfig) -> Float[Array, "m n"]:
    if config.rescale == "none":
        return new
    axis = 1 if config.rescale == "row_norm" else (0, 1)
    sizes = [jnp.sqrt((x * x).sum(axis, keepdims=True)) for x in (old, new)]
    return new * (sizes[0] / jnp.maximum(sizes[1], TINY))

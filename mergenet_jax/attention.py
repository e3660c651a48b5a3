"""Cross-attention between the rows (or columns) of two weight matrices, with a residual and a LayerNorm."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mergenet_jax.sharding import Axes, placed, shares

Params = dict

EPSILON = 1e-12
LEAST_WIDTH = 128


def head_width(queries: int, keys: int, heads: int) -> int:
    """Width of a head: the mean of both widths, at least 128 in all heads together, over the heads."""
    width = max((queries + keys) // 2, LEAST_WIDTH) // heads
    if width < 1:
        raise ValueError(f"{heads} heads are too many for matrices {queries} and {keys} wide; use fewer.")
    return width


def init_dense(key: Array, features_in: int, features_out: int) -> Params:
    """A dense layer, uniform within 1 / sqrt(in), bias too."""
    bound = features_in**-0.5
    kernel, bias = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel, (features_in, features_out), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias, (features_out,), minval=-bound, maxval=bound),
    }


def init_norm(features: int) -> Params:
    """Scale and bias of a LayerNorm."""
    return {"scale": jnp.ones(features), "bias": jnp.zeros(features)}


def standardised(x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Rows of mean 0 and variance 1, computed in float32."""
    h = x.astype(jnp.float32)
    h = h - h.mean(-1, keepdims=True)
    return h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + EPSILON)


def layer_norm(params: Params, x: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """LayerNorm over the last axis."""
    return (standardised(x) * params["scale"][None] + params["bias"][None]).astype(x.dtype)


def dense(params: Params, x: Float[Array, "m n"]) -> Float[Array, "m f"]:
    """X @ kernel + bias."""
    return x @ params["kernel"] + params["bias"][None]


def dense_to(params: Params, x: Float[Array, "m n"], rows: Axes, width: Axes) -> Float[Array, "m f"]:
    """`dense` into a width that is divided over these mesh axes."""
    return placed(dense(params | {"kernel": placed(params["kernel"], (), width)}, x), rows, width)


def dense_from(params: Params, x: Float[Array, "m n"], rows: Axes, width: Axes) -> Float[Array, "m f"]:
    """`dense` from a width that is divided over these mesh axes."""
    return placed(dense(params | {"kernel": placed(params["kernel"], width, ())}, placed(x, rows, width)), rows, ())


def dropout(x: Array, key: Array | None, rate: float) -> Array:
    """Zeroes a share of the entries and scales the others up; without a key nothing."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def init_attention(key: Array, queries: int, keys: int, heads: int) -> Params:
    """Parameters of `attention`, for queries and keys of these widths."""
    width = heads * head_width(queries, keys, heads)
    q, k, v, out = jax.random.split(key, 4)
    return {
        "q": init_dense(q, queries, width),
        "k": init_dense(k, keys, width),
        "v": init_dense(v, keys, width),
        "out": init_dense(out, width, queries),
        "norm": init_norm(queries),
    }


def attention(
    params: Params,
    queries: Float[Array, "m n"],
    asked: Float[Array, "m n"],
    keys: Float[Array, "p q"],
    values: Float[Array, "p q"],
    *,
    heads: int,
    rate: float,
    key: Array | None,
) -> Float[Array, "m n"]:
    """LN(queries + Wo attn(asked, keys, values)); dropout of attention weights where there is a key.

    It has no batch to divide over a mesh, so its heads are divided, see `mergenet_jax.sharding.shares`.

    Args:
        params: of `init_attention`.
        queries: what the result is added to.
        asked: `queries` as the attention sees them (with positions, say).
        keys: the other matrix's rows.
        values: the other matrix's rows, without positions.
        heads: number of heads.
        rate: share of attention weights that are dropped.
        key: of the dropout.
    """
    by_head, by_row = shares(heads, len(queries))
    q = dense_to(params["q"], asked, by_row, by_head).reshape(len(asked), heads, -1)
    k, v = (
        dense_to(params[name], x, (), by_head).reshape(len(x), heads, -1) for name, x in (("k", keys), ("v", values))
    )
    scores = jnp.einsum("mhd,phd->hmp", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = dropout(jax.nn.softmax(scores), key, rate)
    mixed = jnp.einsum("hmp,phd->mhd", weights.astype(v.dtype), v).reshape(len(queries), -1)
    return layer_norm(params["norm"], queries + dense_from(params["out"], mixed, by_row, by_head))

"""The frozen language model as training runs it: the shared decoder's arithmetic, arranged for speed on CPUs.

Frozen kernels are kept in bfloat16 and multiplied into float32 sums, forwards and backwards (about twice as fast as
float32 where the CPU has AVX-512 BF16); no gradient of a frozen kernel is ever computed; the low-rank updates stay in
float32 beside the frozen product. Equal to `models.decoder.Decoder` with the updates merged (tests/train).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.decoder import DecoderConfig
from models.layers.init import Params
from models.layers.rope import rotate, rotation
from models.smolav.lora import Lora

MASKED = -1e9
BLOCKS = 4  # of queries
LONG = 2048  # tokens; longer rows compute every layer anew in the backward pass, or they would need 8 GiB


def freeze(params: Params, dtype: jnp.dtype = jnp.bfloat16) -> Params:
    """The decoder's parameters with matrices in the compute type; the norms' scales stay in float32."""

    def cast(path: Any, p: Array) -> Array:
        return jnp.asarray(p, jnp.float32 if path[-1].key == "scale" else dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def _product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """Contracts one axis of each in the type of `y` and sums in float32."""
    numbers = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x.astype(y.dtype), y, numbers, preferred_element_type=jnp.float32)


@jax.custom_vjp
def frozen_linear(x: Float[Array, "B T D"], kernel: Float[Array, "D F"]) -> Float[Array, "B T F"]:
    """X @ kernel in the kernel's type, summed in float32; the kernel gets no gradient."""
    return _product(x, kernel, (x.ndim - 1, 0))


def _linear_forward(x: Array, kernel: Array) -> tuple[Array, Array]:
    return frozen_linear(x, kernel), kernel


def _linear_backward(kernel: Array, g: Array) -> tuple[Array, Array]:
    return _product(g, kernel, (g.ndim - 1, 1)), jnp.zeros_like(kernel)


frozen_linear.defvjp(_linear_forward, _linear_backward)


def _row_products(x: Float[Array, "R C"], y: Float[Array, "S C"], dtype: jnp.dtype) -> Float[Array, "R S"]:
    """Products of all rows of x with all rows of y, in `dtype`, summed in float32."""
    return _product(x, y.astype(dtype), (1, 1))


_pairs = jax.custom_vjp(_row_products, nondiff_argnums=(2,))


def _pairs_forward(x: Array, y: Array, dtype: jnp.dtype) -> tuple[Array, tuple[Array, Array]]:
    x, y = x.astype(dtype), y.astype(dtype)
    return _row_products(x, y, dtype), (x, y)


def _pairs_backward(dtype: jnp.dtype, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = saved
    return _product(g, y, (1, 0)), _product(g, x, (0, 0))


_pairs.defvjp(_pairs_forward, _pairs_backward)


def _attention(q: Array, k: Array, v: Array, bias: Float[Array, "B T T"], dtype: jnp.dtype) -> Float[Array, "B T D"]:
    """Causal softmax attention with grouped queries: each KV head meets its G query heads as one tall matrix.

    One row and KV head at a time, in blocks of queries that meet only the keys up to the block's end; the weights are
    computed again in the backward pass. So scores stay in the CPU's cache (three times as fast at T = 960), and no
    T x T array per head is ever stored.
    """
    b, t, n, h = q.shape
    heads, group = k.shape[2], n // k.shape[2]
    blocks = BLOCKS if t % BLOCKS == 0 else 1
    rows = t // blocks
    q = q.reshape(b, blocks, rows, heads, group, h).transpose(0, 3, 1, 4, 2, 5).reshape(b * heads, blocks, -1, h)
    k = k.transpose(0, 2, 1, 3).reshape(b * heads, t, h)
    v = v.transpose(0, 2, 3, 1).reshape(b * heads, h, t)

    @jax.checkpoint
    def one(arguments: tuple[Array, Array, Array, Array]) -> Array:
        index, q, k, v = arguments
        out = []
        for block in range(blocks):
            end = (block + 1) * rows
            scores = _pairs(q[block], k[:end], dtype).reshape(group, rows, end) * h**-0.5
            seen = bias[index // heads, end - rows : end, :end]
            weights = jax.nn.softmax(scores + seen[None], axis=-1).reshape(group * rows, end)
            out.append(_pairs(weights, v[:, :end], dtype))
        return jnp.stack(out)

    out: Array = jax.lax.map(one, (jnp.arange(b * heads), q, k, v))
    return out.reshape(b, heads, blocks, group, rows, h).transpose(0, 2, 4, 1, 3, 5).reshape(b, t, n * h)


def _norm(x: Array, scale: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon) * scale.reshape(1, 1, -1)


def forward(
    config: DecoderConfig,
    frozen: Params,
    lora: Lora,
    lora_scale: float,
    embeddings: Float[Array, "B T D"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T T"],
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm.

    Args:
        config: the decoder's sizes.
        frozen: `freeze`'s parameters.
        lora: low-rank updates; empty where they are merged into the kernels.
        lora_scale: factor on them.
        embeddings: input embeddings, float32.
        positions: rotary positions.
        mask: whether query t may see key s.
    """
    c = config
    table = rotation(positions, c.head_dim, c.rope_theta)
    bias = jnp.where(mask, 0.0, MASKED)

    def one(x: Array, own: tuple[Params, Lora]) -> tuple[Array, None]:
        layer, updates = own

        def updated(name: str, h: Array) -> Array:
            y = frozen_linear(h, layer[name]["kernel"])
            if name not in updates:
                return y
            return y + lora_scale * ((h @ updates[name]["a"]) @ updates[name]["b"])

        h = _norm(x, layer["attn_norm"]["scale"], c.rms_norm_eps)
        q, k, v = (updated(name, h).reshape(*h.shape[:2], -1, c.head_dim) for name in ("q", "k", "v"))
        out = _attention(rotate(q, table), rotate(k, table), v, bias, layer["q"]["kernel"].dtype)
        x = x + updated("o", out)
        h = _norm(x, layer["mlp_norm"]["scale"], c.rms_norm_eps)
        mlp = layer["mlp"]
        gated = jax.nn.silu(frozen_linear(h, mlp["gate"]["kernel"])) * frozen_linear(h, mlp["up"]["kernel"])
        return x + frozen_linear(gated, mlp["down"]["kernel"]), None

    layer = jax.checkpoint(one) if embeddings.shape[1] > LONG else one
    x, _ = jax.lax.scan(layer, embeddings, (frozen["layers"], lora))
    return _norm(x, frozen["norm"]["scale"], c.rms_norm_eps)


def embed(frozen: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Embeds token ids."""
    return frozen["tokens"]["embedding"][tokens].astype(jnp.float32)


def logits(frozen: Params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Logits of the tied head, float32."""
    return frozen_linear(hidden, frozen["tokens"]["embedding"].T)

"""A Llama that was not written for acckv_jax: plain dicts of arrays, pure functions, no flax.

It calls the library's `attend` where it would else compute attention; `out_spec` is for Explicit meshes alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from acckv_jax.sharding import out_spec


@dataclasses.dataclass(frozen=True)
class Llama:
    """Sizes of the model; calling it runs it. Hashable by value, so it can be a static argument of jit."""

    vocab: int = 64
    width: int = 32
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    theta: float = 10_000.0

    def init(self, key: jax.Array) -> dict:
        """Random parameters: {"embed": [V, D], "layers": [{name: array}, ...], "head": [V, D]}."""
        shapes = {
            "q": (self.width, self.heads, self.head_dim),
            "k": (self.width, self.kv_heads, self.head_dim),
            "v": (self.width, self.kv_heads, self.head_dim),
            "o": (self.heads, self.head_dim, self.width),
            "up": (self.width, self.hidden),
            "gate": (self.width, self.hidden),
            "down": (self.hidden, self.width),
        }
        keys = iter(jax.random.split(key, 2 + len(shapes) * self.layers))
        layers = [
            {name: self.width**-0.5 * jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
            for _ in range(self.layers)
        ]
        embed, head = (jax.random.normal(next(keys), (self.vocab, self.width)) for _ in range(2))
        return {"embed": embed, "layers": layers, "head": head}

    def __call__(self, params, inputs, positions, caches, carry, attend, logit_positions):
        """Follows `acckv_jax.StepFn`: token ids [B, T] to logits [B, V], the next caches and the carry."""
        hidden_out = out_spec("data", None, None)
        x = params["embed"].at[inputs].get(out_sharding=hidden_out)
        after = []
        for number, (w, cache) in enumerate(zip(params["layers"], caches, strict=True)):
            h = normed(x)
            q, k, v = (jnp.einsum("btd,dnh->btnh", h, w[name]) for name in "qkv")
            more = {"hidden_states": x, "unrotated_q": q, "rotary_frequencies": frequencies(self.head_dim, self.theta)}
            q, k = rotated(q, positions, self.theta), rotated(k, positions, self.theta)
            more = {"output_weights": w["o"]} | more
            out, cache, carry = attend(number, q, k, v, cache, carry, **more)
            after.append(cache)
            x = x + jnp.einsum("btnh,nhd->btd", out, w["o"], out_sharding=hidden_out)
            h = normed(x)
            h = jax.nn.silu(jnp.einsum("btd,df->btf", h, w["gate"])) * jnp.einsum("btd,df->btf", h, w["up"])
            x = x + jnp.einsum("btf,fd->btd", h, w["down"], out_sharding=hidden_out)
        last = jax.vmap(lambda states, row: states[row])(normed(x), logit_positions)
        return jnp.einsum("bd,vd->bv", last, params["head"]), tuple(after), carry


def normed(x: jax.Array) -> jax.Array:
    """RMS norm without a weight."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def frequencies(head_dim: int, theta: float) -> jax.Array:
    """[H/2] radians per position."""
    half = head_dim // 2
    return theta ** (-jnp.arange(half) / half)


def rotated(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """RoPE on [B, T, N, H], pairs (i, i + H/2)."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None].astype(x.dtype) * frequencies(2 * half, theta).reshape(1, 1, 1, -1)
    first, second = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

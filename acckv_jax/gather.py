"""Gathers and scatters along slots, row by row and head by head.

As a double vmap they keep batch and heads where they are: on a mesh that divides rows and KV heads nothing is moved.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def pick(x: Array, at: Int[Array, "B K C"]) -> Array:
    """x[b, k, at[b, k, c]] for x [B, K, S] or [B, K, S, H]."""
    return jax.vmap(jax.vmap(lambda row, slots: row[slots]))(x, at)


def put(into: Array, at: Int[Array, "B K S"], values: Array) -> Array:
    """`into` with values written at slots `at`; slots out of range are dropped."""
    return jax.vmap(jax.vmap(lambda row, slots, new: row.at[slots].set(new, mode="drop")))(into, at, values)


def add(into: Array, at: Int[Array, "B K S"], values: Array) -> Array:
    """`into` with values added at slots `at`; slots out of range are dropped."""
    return jax.vmap(jax.vmap(lambda row, slots, new: row.at[slots].add(new, mode="drop")))(into, at, values)


def slot_numbers(like: Array) -> Int[Array, "B K S"]:
    """0, 1, 2, ... along the slots of a [B, K, S] array, sharded like it."""
    return jnp.zeros_like(like, jnp.int32) + jax.lax.broadcasted_iota(jnp.int32, like.shape, 2)

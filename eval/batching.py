"""Chunks as padded batches, and the jitted functions that take them, each compiled once for all programs."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import acckv_jax
from acckv_jax import Prompt
from models.interface import Chunk


def padded(chunks: Sequence[Chunk], length: int) -> tuple[jax.Array, Prompt]:
    """Chunks as a ragged batch: inputs [B, length] or [B, length, D], and their description."""
    inputs = [np.pad(c.inputs, ((0, length - len(c)),) + ((0, 0),) * (c.inputs.ndim - 1)) for c in chunks]
    modality = [np.pad(c.modality, (0, length - len(c))) for c in chunks]
    lengths = np.array([len(c) for c in chunks])
    return jnp.asarray(np.stack(inputs)), acckv_jax.make_prompt(np.stack(modality), lengths)


@functools.partial(jax.jit, static_argnames=("step", "policies", "layers", "complete"))
def score(params, inputs, prompt, before, *, step, policies, layers, complete):
    """`acckv_jax.score`, jitted."""
    return acckv_jax.score(step, params, inputs, prompt, policies, layers=layers, before=before, complete=complete)


@functools.partial(jax.jit, static_argnames=("step", "policy", "steps", "stop"), donate_argnames="state")
def decode(params, state, *, step, policy, steps, stop):
    """`acckv_jax.decode`, jitted; `state` is donated."""
    return acckv_jax.decode(step, params, state, policy, steps=steps, stop=stop)

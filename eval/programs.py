"""Functions of the library that several programs call, jitted."""

import functools

import jax

import acckv_jax


@functools.partial(jax.jit, static_argnames=("step", "policies", "layers", "complete"))
def score(params, batch, before, *, step, policies, layers, complete):
    """`acckv_jax.score`, jitted."""
    more = {"policies": policies, "layers": layers, "before": before, "complete": complete}
    return acckv_jax.score(step, params, **batch.arguments(), **more)


@functools.partial(jax.jit, static_argnames=("step", "policy", "steps", "stop"), donate_argnames="state")
def decode(params, state, *, step, policy, steps, stop):
    """`acckv_jax.decode`, jitted; `state` is donated."""
    return acckv_jax.decode(step, params, state, policy, steps=steps, stop=stop)

"""Direct parameter sharing, a baseline: the target's kernels are overwritten with the source's, without an adapter."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from mergenet_jax import MergeState, Pair, paths
from mergenet_jax.views import to_kernel, to_matrix


def share(state: MergeState, ways: Sequence[tuple[str, str, tuple[Pair, ...]]], cycle: int) -> MergeState:
    """The state with shared kernels, before every `cycle`-th step; else as it is.

    Kernels are taken as matrices [out, in] (of a k x k convolution [out, in * k * k]). The leading rows and columns
    that both matrices have are copied from source to target as they are; what the target has beyond them stays its own.

    Args:
        state: of dense models.
        ways: source, target and pairs; all of them are read before any is written.
        cycle: steps from one copy to the next.
    """
    before, models = {name: model.params for name, model in state.models.items()}, dict(state.models)
    for source, target, pairs in ways:
        new = {}
        for pair in pairs:
            kernel = paths.get(before[target], pair.target)
            theirs = to_matrix(paths.get(before[source], pair.source), pair.source_layout)
            ours = to_matrix(kernel, pair.target_layout)
            rows, columns = (min(sizes) for sizes in zip(theirs.shape, ours.shape, strict=True))
            copied = ours.at[:rows, :columns].set(theirs[:rows, :columns])
            shared = jnp.where(state.step % cycle == 0, copied, ours)
            new[pair.target] = to_kernel(shared, kernel.shape, pair.target_layout)
        models[target] = dataclasses.replace(models[target], params=paths.replace(models[target].params, new))
    return dataclasses.replace(state, models=models)

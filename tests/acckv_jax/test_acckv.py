"""AccKV in JAX against the independent NumPy implementation: same slots, same keys and values, on random prompts."""

import jax
import numpy as np
import pytest

from acckv_jax.attention import QueryWeights, attend
from acckv_jax.cache import full_layer
from acckv_jax.modality import make_prompt
from acckv_jax.policies.acckv import AccKV
from acckv_jax.policy import Context
from acckv_jax.queries import Queries
from tests.oracles.cases import OPTION_SETS, decided_cases, pad
from tests.tiers import quick_first
from tests.tolerances import FP32

CASES = 10


@jax.jit(static_argnames="policy")
def prune_layer(q, k, v, prompt, policy):
    index = jax.numpy.broadcast_to(jax.numpy.arange(q.shape[1])[None], q.shape[:2])
    rows = Queries(index, prompt.modality, prompt.valid, prompt.length)
    layer = full_layer(k, v, index, prompt.modality, prompt.valid)
    weights = tuple(QueryWeights(queries.weights(rows), queries.exclude_diagonal) for queries in policy.queries)
    _, sums = attend(q, layer, index, weights, aligned=True)
    budget, capacity = policy.row_budget(prompt.length, layer.slots, 0), policy.capacity(layer.slots, 0)
    context = Context(0, prompt.length, prompt.length, budget, sums, queries=policy.queries, capacity=capacity)
    return policy.compress(layer, context)[0]


def jax_policy(options):
    options = dict(options)
    if options.pop("unrotated", False):
        options["unrotated_theta"] = 10_000.0
    return AccKV(**options)


@pytest.mark.parametrize("name", quick_first(OPTION_SETS, 4))
def test_same_slots_and_values_as_numpy(name):
    decided = decided_cases(seed=len(name), options=OPTION_SETS[name], count=CASES)
    batch = pad([case for case, _ in decided], fill=1e3)
    prompt = make_prompt(batch["modality"], batch["lengths"])
    pruned = jax.device_get(prune_layer(batch["q"], batch["k"], batch["v"], prompt, jax_policy(OPTION_SETS[name])))
    for row, (_, trace) in enumerate(decided):
        for head, expected in enumerate(trace.heads):
            valid = pruned.valid[row, head]
            np.testing.assert_array_equal(pruned.index[row, head][valid], expected.index)
            np.testing.assert_array_equal(pruned.modality[row, head][valid], expected.modality)
            np.testing.assert_array_equal(pruned.multiplicity[row, head][valid], expected.multiplicity)
            np.testing.assert_allclose(pruned.k[row, head][valid], expected.keys, **FP32)
            np.testing.assert_allclose(pruned.v[row, head][valid], expected.values, **FP32)


def test_omni_fit_is_a_preset_of_compared_options():
    assert AccKV.omni_fit(budget=0.3) == AccKV(**OPTION_SETS["omni_fit"])

"""The STC connector against upstream's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers.init import FastRngs, abstract_params
from models.videollama2.connector import STCConnector, stc_tensors
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import GOLDEN, STC
from tests.models.videollama2.parameters import seeded_params
from tests.tiers import quick_only
from tests.tolerances import LOGITS

EXPECTED = np.load(GOLDEN / "videollama2_stc.npz")


@functools.cache
def connector(features, hidden):
    graph, shapes = abstract_params(lambda: STCConnector(features, hidden, rngs=FastRngs(0)))
    return jax.jit(lambda params, x: nnx.merge(graph, params)(x)), shapes


@pytest.mark.parametrize("number", quick_only(range(len(STC)), (0, 12)))
def test_equals_upstream(number):
    case = STC[number]
    run, shapes = connector(case.features, case.hidden)
    params = seeded_params(case.seed, stc_tensors(case.features, case.hidden), shapes)
    patches = seeded.array(case.seed, "patches", (1, case.frames, case.side**2, case.features))
    ours = run(params, patches.reshape(1, case.frames, case.side, case.side, case.features))[0]
    tokens = (case.frames // 2) * (case.side // 2) ** 2
    assert ours.shape == (tokens, case.hidden)
    np.testing.assert_allclose(ours, EXPECTED[f"out_{number}"], **LOGITS)


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 1, 4), (4, 4, 1)])
def test_too_little_to_halve(shape):
    run, shapes = connector(8, 20)
    with pytest.raises(ValueError, match="at least 2 frames of 2 x 2 patches"):
        jax.eval_shape(run, shapes, jnp.zeros((1, *shape, 8)))

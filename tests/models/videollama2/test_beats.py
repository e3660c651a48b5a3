"""BEATs against upstream's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.audio.beats import Beats, BeatsConfig, beats_tensors, buckets
from models.layers.init import FastRngs, abstract_params
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import BEATS, GOLDEN, beats_sizes
from tests.models.videollama2.parameters import seeded_params
from tests.tiers import quick_only
from tests.tolerances import LOGITS

EXPECTED = np.load(GOLDEN / "videollama2_beats.npz")


@functools.cache
def encoder(config):
    graph, shapes = abstract_params(lambda: Beats(config, rngs=FastRngs(0)))

    @jax.jit
    def run(params, banks):
        beats = nnx.merge(graph, params)
        return beats(banks), beats.tags(banks)

    return run, shapes


@pytest.mark.parametrize("number", quick_only(range(len(BEATS)), (0, 15, 24)))  # other sizes, blocks of queries
def test_equals_upstream(number):
    case = BEATS[number]
    config = BeatsConfig(**beats_sizes(case.sizes))
    run, shapes = encoder(config)
    params = seeded_params(case.seed, beats_tensors(config), shapes)
    ours, tags = run(params, seeded.banks(case.seed, (1, case.frames, case.bands)))
    np.testing.assert_allclose(ours[0], EXPECTED[f"out_{number}"], **LOGITS)
    np.testing.assert_allclose(tags[0], EXPECTED[f"tags_{number}"], **LOGITS)


def test_buckets_equal_upstream_for_every_distance():
    expected = np.load(GOLDEN / "videollama2_buckets.npz")["buckets"]
    np.testing.assert_array_equal(buckets(BeatsConfig.iter3_plus_as2m(), 1496), expected)


def test_bad_input():
    run, shapes = encoder(BeatsConfig.tiny())
    with pytest.raises(ValueError, match="at least 16 frames"):
        jax.eval_shape(run, shapes, jnp.zeros((1, 15, 128)))
    with pytest.raises(ValueError, match="must be a multiple of its 3 heads"):
        BeatsConfig.tiny(encoder_attention_heads=3)

"""BEATs against upstream's."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.audio.beats import Beats, BeatsConfig, beats_tensors, buckets
from models.interface import define
from tests.models.videollama2 import seeded
from tests.models.videollama2.cases import BEATS, beats_sizes
from tests.models.videollama2.parameters import seeded_params
from tests.tolerances import LOGITS

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = np.load(FOLDER / "videollama2_beats.npz")


@functools.cache
def encoder(config):
    graph, shapes = define(lambda: Beats(config, rngs=nnx.Rngs(0)))

    @jax.jit
    def run(params, banks):
        beats = nnx.merge(graph, params)
        return beats(banks), beats.tags(banks)

    return run, shapes


@pytest.mark.parametrize("number", range(len(BEATS)))
def test_equals_upstream(number):
    case = BEATS[number]
    config = BeatsConfig(**beats_sizes(case.sizes))
    run, shapes = encoder(config)
    params = seeded_params(case.seed, beats_tensors(config), shapes)
    ours, tags = run(params, seeded.banks(case.seed, (1, case.frames, case.bands)))
    np.testing.assert_allclose(ours[0], GOLDEN[f"out_{number}"], **LOGITS)
    np.testing.assert_allclose(tags[0], GOLDEN[f"tags_{number}"], **LOGITS)


def test_buckets_equal_upstream_for_every_distance():
    expected = np.load(FOLDER / "videollama2_buckets.npz")["buckets"]
    np.testing.assert_array_equal(buckets(BeatsConfig.iter3_plus_as2m(), 1496), expected)


def test_published_size():
    config = BeatsConfig.iter3_plus_as2m()
    run, shapes = encoder(config)
    out, tags = jax.eval_shape(run, shapes, jnp.zeros((1, 2998, 128)))
    assert (out.shape, tags.shape) == ((1, 1496, 768), (1, 527))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 90_717_055


def test_bad_input():
    run, shapes = encoder(BeatsConfig.tiny())
    with pytest.raises(ValueError, match="at least 16 frames"):
        jax.eval_shape(run, shapes, jnp.zeros((1, 15, 128)))
    with pytest.raises(ValueError, match="must be a multiple of its 3 heads"):
        BeatsConfig.tiny(encoder_attention_heads=3)

"""The vision tower against transformers' Qwen2_5OmniVisionEncoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniVisionEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniVisionEncoder

from models.layers.init import FastRngs, abstract_params
from models.qwen2_5_omni.config import VisionConfig
from models.qwen2_5_omni.vision import VisionTower, grid_plan, vision_tensors
from tests.models.qwen2_5_omni.towers import DRAWS, STRUCTURES, loaded, randomise
from tests.tiers import quick_first
from tests.tolerances import FP32, LOGITS

TIMES, PATCHES = 3, 200  # what all grids are padded to, so that they share a program


def make_reference(config):
    return Qwen2_5OmniVisionEncoder(Qwen2_5OmniVisionEncoderConfig(**dataclasses.asdict(config))).eval()


def run_reference(reference, pixels, grids):
    """Tokens of several videos [t, h * w, V], encoded together."""
    rows = torch.from_numpy(np.concatenate([p.reshape(-1, p.shape[-1]) for p in pixels]))
    with torch.no_grad():
        return reference(rows, torch.tensor(grids)).pooler_output.numpy()


def encoder(config):
    graph, _ = abstract_params(lambda: VisionTower(config, rngs=FastRngs(0)))
    return jax.jit(lambda params, patches, plan: nnx.merge(graph, params)(patches, plan))


def random_pixels(random, grid, config):
    values = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return random.standard_normal((grid[0], grid[1] * grid[2], values)).astype(np.float32)


def padded_tokens(run, params, pixels, grid, config):
    """Our tokens of one video, computed with room for `TIMES` times and `PATCHES` patches."""
    times, height, width = grid
    room = np.pad(pixels, ((0, TIMES - times), (0, PATCHES - height * width), (0, 0)), constant_values=7)
    tokens = run(params, room, grid_plan(height, width, config, patches=PATCHES, windows=50))
    return np.asarray(tokens)[:times, : height * width // 4].reshape(-1, config.out_hidden_size)


@pytest.mark.parametrize("structure", quick_first(range(STRUCTURES)))
def test_equals_transformers(structure, tmp_path):
    random = np.random.default_rng(structure)
    config = VisionConfig.tiny(
        num_heads=int(random.choice([1, 2, 4, 8])),
        window_size=int(random.choice([28, 56, 84, 112])),
        fullatt_block_indexes=tuple(np.flatnonzero(random.random(3) < 0.4).tolist()),
        out_hidden_size=int(random.choice([16, 48])),
    )
    reference, run = make_reference(config), encoder(config)
    for draw in range(DRAWS):
        randomise(reference, seed=1000 * structure + draw)
        params = loaded(reference, vision_tensors(config), lambda: VisionTower(config, rngs=FastRngs(0)), tmp_path)
        grids = [(int(random.integers(1, TIMES + 1)), *(2 * random.integers(1, 8, 2)).tolist()) for _ in range(2)]
        pixels = [random_pixels(random, grid, config) for grid in grids]
        expected = run_reference(reference, pixels, grids)
        assert expected.std() > 0.3
        ours = [padded_tokens(run, params, p, grid, config) for p, grid in zip(pixels, grids, strict=True)]
        np.testing.assert_allclose(np.concatenate(ours), expected, **LOGITS)


@pytest.fixture(scope="module")
def published_window(tmp_path_factory):
    """A tower with the published window of 4 x 4 units, in both implementations."""
    config = VisionConfig.tiny(window_size=112)
    reference = make_reference(config)
    randomise(reference, seed=0)
    folder = tmp_path_factory.mktemp("vision")
    params = loaded(reference, vision_tensors(config), lambda: VisionTower(config, rngs=FastRngs(0)), folder)
    return config, reference, encoder(config), params


@pytest.mark.parametrize("grid", [(2, 2), (2, 12), (12, 2), (8, 8), (6, 20), (10, 14), (16, 8)])
def test_grids(published_window, grid):
    """Smaller than a window, a whole number of windows, and windows cut off at either edge."""
    config, reference, run, params = published_window
    pixels = random_pixels(np.random.default_rng(0), (3, *grid), config)
    expected = run_reference(reference, [pixels], [(3, *grid)])
    np.testing.assert_allclose(padded_tokens(run, params, pixels, (3, *grid), config), expected, **LOGITS)


def test_grid_without_padding_and_with_more_patches_than_are_attended_to_at_once(published_window):
    config, reference, run, params = published_window
    pixels = random_pixels(np.random.default_rng(0), (1, 18, 16), config)
    expected = run_reference(reference, [pixels], [(1, 18, 16)])
    ours = run(params, pixels, grid_plan(18, 16, config))
    np.testing.assert_allclose(ours.reshape(-1, config.out_hidden_size), expected, **LOGITS)


def test_plan():
    plan = grid_plan(6, 4, VisionConfig.tiny(window_size=56), patches=28, windows=4)
    assert plan.count == 24 and plan.positions.shape == (28, 2) and plan.windows.shape == (4, 16)
    assert plan.lengths.tolist() == [16, 8, 0, 0]
    assert plan.positions[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
    np.testing.assert_array_equal(plan.windows.ravel()[plan.back[:24]], np.arange(24))


def test_half_precision(published_window):
    config, _, run, params = published_window
    graph, _ = abstract_params(lambda: VisionTower(config, rngs=FastRngs(0), dtype=jnp.bfloat16))
    pixels, plan = random_pixels(np.random.default_rng(0), (1, 18, 16), config), grid_plan(18, 16, config)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    half = jax.jit(lambda p, x: nnx.merge(graph, p)(x, plan))(halves, pixels)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), run(params, pixels, plan), rtol=0, atol=0.1)


def test_times_do_not_see_one_another(published_window):
    config, _, run, params = published_window
    pixels = random_pixels(np.random.default_rng(0), (3, 6, 4), config)
    first = padded_tokens(run, params, pixels, (3, 6, 4), config)[:6]
    pixels[1:] += 1
    np.testing.assert_allclose(padded_tokens(run, params, pixels, (3, 6, 4), config)[:6], first, **FP32)


@pytest.mark.parametrize("grid", [(3, 4), (4, 5), (0, 2)])
def test_grids_of_half_units(grid):
    with pytest.raises(ValueError, match="is not made of 2 x 2 units; resize the frame"):
        grid_plan(*grid, VisionConfig.tiny())

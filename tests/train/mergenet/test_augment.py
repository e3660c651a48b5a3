"""Crop, flip and rotation equal Pillow's; draws have the right spread; one key, one result."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from models.errors import UserError
from tests.tolerances import FP32
from train.mergenet.augment import STATISTICS, Augmentation, Changes, Statistics, augment, change, draw, normalise

ROWS = 24
PLAIN = Augmentation()
IMAGES = np.random.default_rng(0).integers(1, 256, (ROWS, 32, 32, 3)).astype(np.uint8)
DRAWN: Changes = jax.tree.map(np.asarray, draw(jax.random.key(1), ROWS, PLAIN))
CHANGE = jax.jit(change)


def _shifted_and_mirrored(image: np.ndarray, shift: np.ndarray, mirrored: bool) -> np.ndarray:
    """Torchvision's order: a border of zeros, a crop at (4 + shift), then the mirror."""
    top, left = 4 + shift
    crop = np.pad(image, ((4, 4), (4, 4), (0, 0)))[top : top + 32, left : left + 32]
    return crop[:, ::-1] if mirrored else crop


def test_shifts_and_mirrors_equal_padding_and_slicing() -> None:
    still = DRAWN._replace(angle=np.zeros(ROWS, np.float32))
    expected = [_shifted_and_mirrored(*one) for one in zip(IMAGES, still.shift, still.mirrored, strict=True)]
    np.testing.assert_array_equal(CHANGE(IMAGES, still), np.stack(expected))


def test_rotations_equal_pillow() -> None:
    """All but the few pixels whose origin lies within rounding of two pixels, where Pillow counts in 1/65536."""
    found = np.asarray(CHANGE(IMAGES, DRAWN))
    expected, clear = np.empty_like(found), np.empty((ROWS, 32, 32), bool)
    middle = np.arange(32) - 15.5
    for i, (shift, mirrored, angle) in enumerate(zip(*DRAWN, strict=True)):
        picture = Image.fromarray(np.ascontiguousarray(_shifted_and_mirrored(IMAGES[i], shift, bool(mirrored))))
        expected[i] = np.asarray(picture.rotate(math.degrees(angle), Image.Resampling.NEAREST))
        x = np.cos(angle) * middle[None, :] - np.sin(angle) * middle[:, None]
        y = np.sin(angle) * middle[None, :] + np.cos(angle) * middle[:, None]
        clear[i] = np.all(np.abs(np.stack([x, y]) - np.round(np.stack([x, y]))) > 2e-3, axis=0)
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(found[clear], expected[clear])
    assert (found == 0).all(axis=-1).mean() > 0.02  # corners and borders are black


def test_draws() -> None:
    shift, mirrored, angle = draw(jax.random.key(0), 20_000, PLAIN)
    counts = np.stack([np.bincount(np.asarray(shift)[:, axis] + 4) for axis in (0, 1)])
    assert counts.shape == (2, 9) and np.abs(counts / 20_000 - 1 / 9).max() < 0.01
    assert abs(float(np.mean(mirrored)) - 0.5) < 0.015
    degrees = np.degrees(angle)
    assert np.abs(degrees).max() <= 15 and abs(degrees.std() - 15 / math.sqrt(3)) < 0.1
    assert np.abs(np.corrcoef(np.stack([*np.asarray(shift).T, mirrored, degrees])) - np.eye(4)).max() < 0.03


def test_nothing_to_change_only_normalises() -> None:
    statistics = STATISTICS["cifar100"]
    found = augment(IMAGES, jax.random.key(3), statistics, Augmentation(padding=0, mirrored=0.0, degrees=0.0))
    expected = (IMAGES.astype(np.float64) / 255 - statistics.mean) / statistics.std
    np.testing.assert_allclose(found, expected, **FP32)
    assert found.dtype == jnp.float32


def test_a_key_decides_and_seeds_are_mapped() -> None:
    statistics = Statistics.of(IMAGES)
    function = jax.jit(jax.vmap(lambda key: augment(IMAGES, key, statistics, PLAIN)))
    keys = jax.random.split(jax.random.key(7), 2)
    both = function(keys)
    np.testing.assert_array_equal(both, function(keys))
    assert not np.array_equal(both[0], both[1])
    alone = normalise(CHANGE(IMAGES, draw(keys[1], ROWS, PLAIN)), statistics)
    np.testing.assert_allclose(both[1], alone, **FP32)


def test_statistics_are_those_of_the_pixels() -> None:
    found, pixels = Statistics.of(IMAGES), IMAGES.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-9)


def test_bad_settings() -> None:
    for wrong in ({"padding": -1}, {"mirrored": 1.5}, {"degrees": -2.0}, {"degrees": 181.0}, {"degrees": math.nan}):
        with pytest.raises(UserError, match="degrees between 0 and 180 and mirrored a probability"):
            Augmentation(**wrong)

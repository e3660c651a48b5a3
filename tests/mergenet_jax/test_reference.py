"""The NumPy reference against upstream's outputs, vectors and gradients."""

import math

import numpy as np
import pytest

from tests.mergenet_jax import reference, seeded
from tests.mergenet_jax.cases import CASES, GOLDEN, PUBLISHED, shapes, split_vectors
from tests.tolerances import FP32

EXPECTED = np.load(GOLDEN)
CONSTRUCTION = 16  # power iterations


def complete(number):
    return pytest.param(number, marks=pytest.mark.complete)


each_case = pytest.mark.parametrize("number", range(len(CASES)))


def run(case, weights, vectors):
    return reference.adapter(
        weights, vectors, seeded.target(case), seeded.source(case), layers=case.layers, heads=case.heads
    )


@each_case
def test_evaluation_equals_upstream(number):
    case = CASES[number]
    weights = seeded.weights(case)
    vectors = reference.iterate(weights, seeded.unset_vectors(case), CONSTRUCTION)
    for name, value in split_vectors(case, EXPECTED[f"vectors_{number}"][0]).items():
        np.testing.assert_allclose(vectors[name], value, **FP32)
    np.testing.assert_allclose(run(case, weights, vectors), EXPECTED[f"eval_{number}"], **FP32)


@each_case
def test_a_training_forward_iterates_once(number):
    case = CASES[number]
    weights = seeded.weights(case)
    rows = EXPECTED[f"vectors_{number}"]
    vectors = split_vectors(case, rows[0])
    for call in range(3):
        vectors = reference.iterate(weights, vectors, 1)
        for name, value in split_vectors(case, rows[call + 1]).items():
            np.testing.assert_allclose(vectors[name], value, **FP32)
        np.testing.assert_allclose(run(case, weights, vectors), EXPECTED[f"train_{number}"][call], **FP32)


@pytest.mark.parametrize("number", [number if number in (1, 5) else complete(number) for number in range(len(CASES))])
def test_gradients_equal_upstreams(number):
    case = CASES[number]
    weights = reference.exact(seeded.weights(case))
    vectors = split_vectors(case, EXPECTED[f"vectors_{number}"][1])
    delta = EXPECTED[f"train_{number}"][0].astype(np.float64) - seeded.final(case)
    for row, (name, shape) in zip(EXPECTED[f"grads_{number}"], shapes(case).items(), strict=True):
        directions = {0: np.ones(shape), 2: seeded.direction(case, name, shape)}  # by column of the row
        if number == 0:
            places = np.linspace(0, math.prod(shape) - 1, 16).round().astype(int)
            directions |= {3 + i: np.eye(1, math.prod(shape), at).reshape(shape) for i, at in enumerate(places)}
        for column, direction in directions.items():
            found = reference.slope(
                lambda value, name=name: (delta * run(case, weights | {name: value}, vectors)).sum(),
                weights[name],
                direction.astype(np.float64),
            )
            np.testing.assert_allclose(found, row[column], rtol=1e-4, atol=1e-6 * row[1] + 1e-6)


@pytest.mark.complete
def test_published_sizes():
    assert sum(map(math.prod, shapes(PUBLISHED).values())) == EXPECTED["published_count"] == 37_633_920
    weights = seeded.weights(PUBLISHED)
    vectors = reference.iterate(weights, seeded.unset_vectors(PUBLISHED), CONSTRUCTION)
    out = seeded.summary(PUBLISHED, "out", run(PUBLISHED, weights, vectors), entries=512)
    np.testing.assert_allclose(out, EXPECTED["published_eval"], **FP32)

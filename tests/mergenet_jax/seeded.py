"""Weights and matrices of the cases made from seeds, and the numbers that stand for a large tensor. NumPy alone."""

import numpy as np

from tests.mergenet_jax.cases import Case, shapes, vector_shapes
from tests.models.videollama2.seeded import array, weight


def weights(case: Case) -> dict[str, np.ndarray]:
    """All parameters, float32."""
    return {name: weight(case.seed, name, shape) for name, shape in shapes(case).items()}


def unset_vectors(case: Case) -> dict[str, np.ndarray]:
    """Unit vectors from which the construction of spectral norm starts its iterations."""
    raw = {name: array(case.seed, name, shape) for name, shape in vector_shapes(case).items()}
    return {name: (value / np.linalg.norm(value)).astype(np.float32) for name, value in raw.items()}


def target(case: Case, step: int = 0) -> np.ndarray:
    """The target's matrix [m, n] before a step."""
    return array(case.seed, f"target {step}", case.target)


def source(case: Case, step: int = 0) -> np.ndarray:
    """The source's matrix [p, q] before a step."""
    return array(case.seed, f"source {step}", case.source)


def final(case: Case, step: int = 0) -> np.ndarray:
    """The target's matrix [m, n] after a step; far from the written one where the first gradients are to be clipped."""
    scale = case.final if step == 0 else 1.0
    return np.float32(scale) * array(case.seed, f"final {step}", case.target)


def direction(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The unit normal tensor with which `summary` takes the product."""
    return array(case.seed, f"direction {name}", shape)


def summary(case: Case, name: str, values: np.ndarray, entries: int = 16) -> np.ndarray:
    """[3 + entries] float64: sum, Euclidean norm, inner product with `direction`, and entries at equal distances."""
    flat = np.asarray(values, np.float64).ravel()
    product = flat @ direction(case, name, np.shape(values)).ravel().astype(np.float64)
    places = np.linspace(0, flat.size - 1, entries).round().astype(int)
    return np.concatenate([[flat.sum(), np.linalg.norm(flat), product], flat[places]])


def summaries(case: Case, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """[P, 19] `summary` of the tensors that `shapes` names, in its order."""
    return np.stack([summary(case, name, tensors[name]) for name in shapes(case)])

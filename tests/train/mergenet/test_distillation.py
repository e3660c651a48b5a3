"""Each baseline equals its authors' code (golden file) and its formula in plain NumPy; only the student is moved."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from models.vision.classification import Outputs
from tests.tolerances import FP32
from train.mergenet.distillation import DISTILLATIONS, DKD, KD, NKD, RKD, Distillation, cross_entropy

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "distillation.npz")
SETTINGS: dict[str, Distillation] = {name: make() for name, make in DISTILLATIONS.items()}
SETTINGS["nkd_imagenet"] = NKD.imagenet()
GOLDEN_EPOCH = 5
CASES = (0, 1)


def _inputs(number: int) -> tuple[Outputs, Outputs, np.ndarray]:
    student, teacher = (
        Outputs(GOLDEN[f"{who}_logits_{number}"], GOLDEN[f"{who}_features_{number}"]) for who in ("student", "teacher")
    )
    return student, teacher, GOLDEN[f"labels_{number}"]


def _softmax(row: np.ndarray) -> np.ndarray:
    exp = np.exp(row - row.max())
    return exp / exp.sum()


def _mean_over_rows(row_loss: Callable[[np.ndarray, np.ndarray, int], float]) -> Callable[..., float]:
    def loss(student: Outputs, teacher: Outputs, labels: np.ndarray) -> float:
        rows = zip(np.float64(student.logits), np.float64(teacher.logits), labels, strict=True)
        return float(np.mean([row_loss(s, t, y) - np.log(_softmax(s)[y]) for s, t, y in rows]))

    return loss


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def _kd_row(s: np.ndarray, t: np.ndarray, y: int) -> float:
    """0.1 CE + 0.9 * 16 KL, less the cross entropy that is added to all rows."""
    return 0.9 * np.log(_softmax(s)[y]) + 0.9 * 4**2 * _kl(_softmax(t / 4), _softmax(s / 4))


def _dkd_row(s: np.ndarray, t: np.ndarray, y: int) -> float:
    p, q = _softmax(t / 4), _softmax(s / 4)
    target = _kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    rest = _kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
    return GOLDEN_EPOCH / 20 * 4**2 * (1.0 * target + 8.0 * rest)


def _nkd_row(gamma: float, temperature: float) -> Callable[[np.ndarray, np.ndarray, int], float]:
    def row(s: np.ndarray, t: np.ndarray, y: int) -> float:
        p, q = (np.delete(_softmax(x / temperature), y) for x in (t, s))
        p, q = p / p.sum(), q / q.sum()
        return -_softmax(t)[y] * np.log(_softmax(s)[y]) - gamma * temperature**2 * float(np.sum(p * np.log(q)))

    return row


def _rkd(student: Outputs, teacher: Outputs, labels: np.ndarray) -> float:
    def huber(x: float, y: float) -> float:
        return 0.5 * (x - y) ** 2 if abs(x - y) <= 1 else abs(x - y) - 0.5

    def relations(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = len(features)
        distance = np.array([[np.linalg.norm(a - b) for b in features] for a in features])
        mean = distance[~np.eye(n, dtype=bool)].mean()
        cosine = np.zeros((n, n, n))
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    if i not in (j, k):
                        a, b = features[j] - features[i], features[k] - features[i]
                        cosine[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return distance / mean, cosine

    own, other = relations(np.float64(student.features)), relations(np.float64(teacher.features))
    distance, angle = (
        np.mean([huber(x, y) for x, y in zip(a.flat, b.flat, strict=True)]) for a, b in zip(own, other, strict=True)
    )
    return float(25 * distance + 50 * angle + _mean_over_rows(lambda s, t, y: 0.0)(student, teacher, labels))


FORMULAS = {
    "kd": _mean_over_rows(_kd_row),
    "dkd": _mean_over_rows(_dkd_row),
    "rkd": _rkd,
    "nkd": _mean_over_rows(_nkd_row(3.5, 3.0)),
    "nkd_imagenet": _mean_over_rows(_nkd_row(1.5, 1.0)),
}


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_equal_the_authors_code_and_the_formula(name: str, number: int) -> None:
    student, teacher, labels = _inputs(number)

    def loss(student: Outputs, teacher: Outputs) -> jax.Array:
        return SETTINGS[name](student, teacher, jnp.asarray(labels), GOLDEN_EPOCH)

    value, (own, other) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(student, teacher)
    np.testing.assert_allclose(value, GOLDEN[f"{name}_loss_{number}"], **FP32)
    np.testing.assert_allclose(value, FORMULAS[name](student, teacher, labels), **FP32)
    np.testing.assert_allclose(own.logits, GOLDEN[f"{name}_logits_grad_{number}"], **FP32)
    np.testing.assert_allclose(own.features, GOLDEN[f"{name}_features_grad_{number}"], **FP32)
    assert np.abs(own.logits).max() > 0 and (name != "rkd" or np.abs(own.features).max() > 0)
    assert not np.any(other.logits) and not np.any(other.features)


def test_dkd_warms_up() -> None:
    student, teacher, labels = _inputs(0)
    loss = jax.jit(DKD())
    at = [float(loss(student, teacher, labels, jnp.int32(epoch))) for epoch in (0, 10, 20, 200)]
    labels_only = float(cross_entropy(student.logits, labels))
    assert at[0] == pytest.approx(labels_only) and at[2] == at[3]
    assert at[1] == pytest.approx((at[0] + at[2]) / 2)
    assert float(jax.jit(DKD(warmup=0))(student, teacher, labels, 0)) == at[2]


@pytest.mark.parametrize("name", SETTINGS)
def test_confident_and_collapsed_outputs_give_finite_losses_and_gradients(name: str) -> None:
    _, teacher, labels = _inputs(0)
    sure = Outputs(1000.0 * jax.nn.one_hot(labels, 10), jnp.zeros((6, 5)))
    loss = jax.jit(jax.value_and_grad(lambda x, t: SETTINGS[name](x, t, labels, 20)))
    for logits in (sure.logits, -sure.logits):
        value, gradient = loss(sure._replace(logits=logits), teacher._replace(logits=1000.0 * teacher.logits))
        assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_is_widened_and_seeds_are_mapped(name: str) -> None:
    student, teacher, labels = _inputs(0)
    half = jax.tree.map(lambda x: jnp.stack([x, 2 * x]).astype(jnp.bfloat16), (student, teacher))
    values = jax.jit(jax.vmap(lambda s, t: SETTINGS[name](s, t, labels, 3)))(*half)
    assert values.dtype == jnp.float32 and values.shape == (2,)
    first = jax.tree.map(lambda x: x[0].astype(jnp.float32), half)
    np.testing.assert_allclose(values[0], jax.jit(SETTINGS[name])(*first, labels, 3), **FP32)


def test_bad_settings() -> None:
    for make in (KD, DKD, NKD):
        with pytest.raises(UserError, match=f"{make.__name__}'s temperature must be above 0, not 0"):
            make(temperature=0.0)
    with pytest.raises(UserError, match="0 or more epochs, not -1"):
        DKD(warmup=-1)
    one = Outputs(jnp.zeros((1, 3)), jnp.zeros((1, 4)))
    with pytest.raises(UserError, match="batches of 2 or more, not 1"):
        RKD()(one, one, jnp.zeros(1, jnp.int32), 1)

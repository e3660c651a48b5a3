"""The column-sum kernel alone, in the TPU interpreter, against NumPy; and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from acckv_jax.kernels import column_sums
from acckv_jax.kernels.column_sums import Blocks
from tests.docs import pages
from tests.tiers import quick_first

RUN = jax.jit(
    functools.partial(column_sums, interpret=pltpu.InterpretParams()), static_argnames=("exclude_diagonal", "scale")
)


def dense(q, k, weights, first, excluded, scale):
    """Log-sum-exp [B, K, G, T], and sums [M, B, K, S], from all weights at once."""
    q, k = (np.asarray(x).astype(np.float32) for x in (q, k))
    slot = first[:, None] + np.arange(q.shape[3])
    age = (slot[:, :, None] - np.arange(k.shape[2]))[:, None, None]
    logits = np.where(age >= 0, np.einsum("bkgth,bksh->bkgts", q, k) * scale, -np.inf)
    largest = logits.max(-1)
    lse = largest + np.log(np.exp(logits - largest[..., None]).sum(-1))
    shares = np.exp(logits - lse[..., None])
    sums = [
        np.einsum("bt,bkgts->bks", each, np.where((age == 0) & out, 0, shares)) / q.shape[2]
        for each, out in zip(weights, excluded, strict=True)
    ]
    return lse.astype(np.float32), np.stack(sums)


def inputs(rng, rows, heads, group, tokens, slots, size, dtype):
    q = jnp.asarray(rng.standard_normal((rows, heads, group, tokens, size)), dtype)
    return q, jnp.asarray(rng.standard_normal((rows, heads, slots, size)), dtype)


@pytest.mark.parametrize(
    ("rows", "heads", "group", "tokens", "slots", "size", "dtype", "excluded"),
    quick_first(
        [
            (2, 1, 2, 100, 140, 64, jnp.bfloat16, (True, False, True)),
            (1, 2, 3, 260, 260, 64, jnp.float32, (False,)),
            (2, 2, 1, 384, 700, 128, jnp.float32, (True, True)),
            (1, 1, 8, 1030, 1100, 128, jnp.bfloat16, (False, True)),
            (1, 1, 32, 256, 256, 128, jnp.float32, (False,) * 9),
        ]
    ),
)
def test_numbers(rows, heads, group, tokens, slots, size, dtype, excluded):
    rng = np.random.default_rng(tokens)
    q, k = inputs(rng, rows, heads, group, tokens, slots, size, dtype)
    weights = rng.random((len(excluded), rows, tokens)).astype(np.float32)
    weights[..., tokens // 3 : tokens // 2] = 0  # with many rows, whole blocks without weight
    lse, expected = dense(q, k, weights, np.full(rows, slots - tokens), excluded, size**-0.5)
    found = RUN(q, k, lse, weights, exclude_diagonal=excluded, scale=size**-0.5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())


@pytest.mark.complete
def test_blocks_without_weight_and_rows_anywhere():
    """Rows begin at another slot in every sequence; one sequence has weight in one block, another in none."""
    rng = np.random.default_rng(0)
    q, k = inputs(rng, 3, 1, 2, 384, 640, 64, jnp.float32)
    weights = np.zeros((1, 3, 384), np.float32)
    weights[0, 0], weights[0, 1, 200:210] = 1, 1
    first = np.array([0, 77, 256])
    lse, expected = dense(q, k, weights, first, (False,), 0.125)
    found = RUN(q, k, lse, weights, first=first, scale=0.125)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.max())
    assert not np.any(found[0, 2])


def test_no_statistics():
    q, k = jnp.ones((1, 2, 1, 128, 64)), jnp.ones((1, 2, 256, 64))
    assert column_sums(q, k, jnp.ones((1, 2, 1, 128)), jnp.ones((0, 1, 128))).shape == (0, 1, 2, 256)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"k": np.ones((1, 2, 256, 32), np.float32)}, r"k has the shape \(1, 2, 256, 32\), but \(1, 2, 256, 64\) fits"),
        ({"lse": np.ones((1, 2, 128), np.float32)}, r"lse has the shape \(1, 2, 128\)"),
        ({"weights": np.ones((1, 2, 128), np.float32)}, r"weights has the shape"),
        ({"exclude_diagonal": (True, False)}, r"exclude_diagonal has the shape \(2,\), but \(1,\) fits"),
        ({"first": np.zeros(2, np.int32)}, r"first has the shape \(2,\)"),
        ({"k": np.ones((1, 2, 256, 64), np.float16)}, "of one type, not float32 and float16"),
        ({"k": np.ones((1, 2, 64, 64), np.float32)}, "128 rows cannot be the last of 64 slots"),
    ],
)
def test_what_does_not_fit_is_told(changed, sentence):
    fitting = {
        "q": np.ones((1, 2, 3, 128, 64), np.float32),
        "k": np.ones((1, 2, 256, 64), np.float32),
        "lse": np.ones((1, 2, 3, 128), np.float32),
        "weights": np.ones((1, 1, 128), np.float32),
    }
    with pytest.raises(ValueError, match=sentence):
        column_sums(**{**fitting, **changed})


def test_blocks():
    """Row blocks divide the rows; only those that see a slot are counted."""
    blocks = Blocks.of(20480, 20480, 7 * 128 * 2)
    assert (blocks.rows, blocks.slots, blocks.row_blocks, blocks.slot_blocks) == (512, 1024, 40, 20)
    assert blocks.used(0) == sum(40 - 2 * j for j in range(20)) and blocks.used(20480) == 800
    assert Blocks.of(100, 300, 64).rows == 128 and Blocks.of(100, 300, 64).slots == 128
    assert Blocks.of(512, 512, 32 * 128 * 4).rows == 128  # many heads


@pytest.mark.complete
def test_example_of_the_page():
    names = {}
    with pltpu.force_tpu_interpret_mode():
        pages.run("docs/column_sums.md", names)
    assert names["sums"].shape == (2, 1, 2, 256)
    np.testing.assert_allclose(names["sums"][1].sum(-1), 32, rtol=1e-4)
    assert np.all(names["sums"][0].sum(-1) < 255)

"""Attention as on GPUs, with XLA in the place of cuDNN, which no other processor runs."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import acckv_jax as kv
from acckv_jax import attention
from acckv_jax.attention import attend
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.kernels.cases import Shape, make
from tests.tiers import quick_first

STATISTICS = ("all", "text off the diagonal", "window")
ON_GPU = functools.partial(attend, aligned=True, implementation="gpu")


@pytest.fixture
def gpu(monkeypatch):
    """A process that thinks it has one; calls of cuDNN are recorded."""
    calls, whole = [], jax.nn.dot_product_attention

    def recorded(*args, implementation, **options):
        calls.append(implementation)
        with jax.numpy_dtype_promotion("standard"):
            return whole(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return calls


@pytest.mark.parametrize(("statistics",), quick_first([(STATISTICS,), (("window", "window off the diagonal"),), ((),)]))
def test_output_by_cudnn_and_sums_by_row_blocks(gpu, statistics):
    case = make(Shape(tokens=100, group=2, dtype="bfloat16", statistics=statistics), seed=1)
    out, sums = jax.jit(ON_GPU)(case.q, case.layer, case.index, case.statistics)
    assert gpu == ["cudnn"]
    expected, by_rows = jax.jit(functools.partial(attend, aligned=True, implementation="xla"))(
        case.q, case.layer, case.index, case.statistics
    )
    differences = np.asarray(out, np.float32) - np.asarray(expected, np.float32)
    assert np.abs(differences)[case.valid].max() < 2e-2
    for ours, theirs in zip(sums, by_rows, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.max()))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(tokens=100), "queries, keys and values of types float32"),
        (Shape(prefix=20, tokens=100, dtype="bfloat16"), "a chunk after cached slots"),
    ],
    ids=str,
)
def test_the_rest_goes_through_row_blocks(gpu, shape, reason, caplog):
    attention._say_once.cache_clear()
    case = make(shape, seed=1)
    arguments = (case.q, case.layer, case.index, case.statistics)
    with caplog.at_level(logging.WARNING, "acckv_jax"):
        out, sums = jax.jit(ON_GPU)(*arguments)
        jax.jit(lambda *args: ON_GPU(*args))(*arguments)
    assert gpu == [] and len(caplog.records) == 1 and reason in caplog.text
    expected = jax.jit(functools.partial(attend, aligned=True))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, (out, sums), expected)


def test_a_process_without_a_gpu(caplog):
    attention._say_once.cache_clear()
    case = make(Shape(tokens=100, dtype="bfloat16"), seed=1)
    jax.jit(ON_GPU).trace(case.q, case.layer, case.index)
    assert "do not take a process without a GPU" in caplog.text


@pytest.mark.parametrize("asked", ["gpu", None])
def test_a_decoder_asks_for_it(gpu, asked):
    decoder, params, inputs, prompt = tiny_decoder(128)
    decoder = dataclasses.replace(decoder, attention=asked)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    for read, more in ((kv.prefill, kv.Knorm(budget=0.5)), (kv.score, (kv.Knorm(),))):
        gpu.clear()
        jax.eval_shape(lambda p, read=read, more=more: read(decoder, p, inputs, prompt, more), params)
        assert gpu == (["cudnn"] * decoder.num_layers if asked else [])

"""Blockwise attention and its column sums against NumPy, over fresh and over pruned caches; who else may do it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from acckv_jax.attention import QueryWeights, attend
from acckv_jax.cache import full_layer
from tests.acckv_jax.kernels.cases import Shape, check, make
from tests.tiers import quick_first
from tests.tolerances import FP32

ROWS, HEADS, KV_HEADS, SIZE = 2, 4, 2, 8
ALIGNED = functools.partial(attend, aligned=True)


def numpy_attention(q, layer, q_index, log_multiplicity):
    """Output [B, T, N, H] and probabilities [B, N, T, S], in float64."""
    group = HEADS // KV_HEADS
    k, v, index, valid, multiplicity = (
        np.repeat(np.asarray(getattr(layer, name)), group, axis=1)
        for name in ("k", "v", "index", "valid", "multiplicity")
    )
    logits = np.einsum("btnh,bnsh->bnts", q.astype(float), k.astype(float)) / np.sqrt(SIZE)
    if log_multiplicity:
        logits = logits + np.log(multiplicity)[:, :, None, :]
    seen = valid[:, :, None, :] & (index[:, :, None, :] <= q_index[:, None, :, None])
    weights = np.where(seen, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bnts,bnsh->btnh", weights, v.astype(float)), weights


def random_layer(tokens: int, lengths: np.ndarray, seed: int = 0):
    """Queries and a layer of `tokens` slots; padding holds very large numbers."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((ROWS, tokens, n, SIZE)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    index = np.broadcast_to(np.arange(tokens, dtype=np.int32), (ROWS, tokens))
    valid = index < lengths[:, None]
    k, v = (np.where(valid[..., None, None], x, np.float32(1e30)) for x in (k, v))
    return q, full_layer(*(jnp.asarray(x) for x in (k, v, index, np.ones_like(index, np.int8), valid))), index, valid


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("tokens", [100, 300])
@pytest.mark.parametrize("exclude_diagonal", [True, False])
def test_prompt_rows_and_column_sums(tokens, aligned, exclude_diagonal):
    q, layer, index, valid = random_layer(tokens, np.array([tokens, tokens - 41]))
    rng = np.random.default_rng(1)
    weights = (rng.random((2, ROWS, tokens)) * valid[None]).astype(np.float32)
    stats = (
        QueryWeights(jnp.asarray(weights[0]), exclude_diagonal),
        QueryWeights(jnp.asarray(weights[1]), exclude_diagonal),
        QueryWeights(jnp.asarray(weights[1])),
    )
    run = jax.jit(attend, static_argnames="aligned")
    out, sums = run(q, layer, index, stats, aligned=aligned)
    expected, probabilities = numpy_attention(q, layer, index, False)
    np.testing.assert_allclose(np.asarray(out)[valid], expected[valid], **FP32)
    for stat, ours in zip(stats, sums, strict=True):
        counted = probabilities * (1 - np.eye(tokens)) if stat.exclude_diagonal else probabilities
        per_head = np.einsum("bt,bnts->bns", np.asarray(stat.weights, float), counted)
        per_kv_head = per_head.reshape(ROWS, KV_HEADS, -1, tokens).mean(2)
        np.testing.assert_allclose(ours, per_kv_head, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 150])
def test_rows_over_scattered_slots_with_multiplicity(tokens):
    rng = np.random.default_rng(2)
    _, layer, _, _ = random_layer(64, np.array([64, 50]))
    index = np.sort(rng.permuted(np.tile(np.arange(200, dtype=np.int32), (ROWS, KV_HEADS, 1)), axis=-1)[..., :64], -1)
    holes = np.asarray(layer.valid) & (rng.random(index.shape) < 0.6)
    multiplicity = rng.integers(1, 9, index.shape).astype(np.float32)
    fields = {"index": index, "valid": holes, "multiplicity": multiplicity}
    layer = dataclasses.replace(layer, **{name: jnp.asarray(x) for name, x in fields.items()})
    q = rng.standard_normal((ROWS, tokens, HEADS, SIZE)).astype(np.float32)
    rows = np.broadcast_to(np.arange(60, 60 + tokens, dtype=np.int32), (ROWS, tokens))
    out, sums = attend(q, layer, rows, (QueryWeights(jnp.ones((ROWS, tokens))),), log_multiplicity=True)
    expected, probabilities = numpy_attention(q, layer, rows, True)
    np.testing.assert_allclose(out, expected, **FP32)
    total = probabilities.sum(2).reshape(ROWS, KV_HEADS, -1, 64).mean(2)
    np.testing.assert_allclose(sums[0], total, rtol=1e-5, atol=1e-4)


def test_bfloat16_keys_attend_in_float32():
    q, layer, index, _ = random_layer(100, np.array([100, 100]))
    narrow = dataclasses.replace(layer, k=layer.k.astype(jnp.bfloat16), v=layer.v.astype(jnp.bfloat16))
    out, sums = attend(jnp.asarray(q, jnp.bfloat16), narrow, index, (QueryWeights(jnp.ones((ROWS, 100))),))
    expected, probabilities = numpy_attention(q, layer, index, False)
    assert out.dtype == jnp.bfloat16 and sums[0].dtype == jnp.float32
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2e-2)
    np.testing.assert_allclose(sums[0].sum(-1), 100, rtol=2e-2)


def lowered(platform: str, tokens: int = 128, size: int = 64, **options) -> str:
    """The program of a prompt's attention with sums, for a platform that need not be there."""
    q, k = jax.ShapeDtypeStruct((1, tokens, 4, size), jnp.bfloat16), jnp.ones((1, tokens, 2, size), jnp.bfloat16)
    index = np.arange(tokens, dtype=np.int32)[None]
    layer = full_layer(k, k, index, index.astype(np.int8), np.ones_like(index, bool))
    stats = (QueryWeights(np.ones((1, tokens), np.float32)),)
    traced = jax.jit(lambda q: attend(q, layer, index, stats, **options)).trace(q)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_the_platform_chooses_the_implementation():
    on_tpu = lowered("tpu", aligned=True)
    assert on_tpu.count("tpu_custom_call") == 2 and "stablehlo.exponential" not in on_tpu
    assert "custom_call @" not in lowered("cpu", aligned=True)
    assert "tpu_custom_call" not in lowered("tpu", aligned=True, implementation="xla")


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 64, "aligned": True},  # few rows
        {"aligned": False},  # slots that are not the rows'
        {"aligned": True, "log_multiplicity": True},
        {"aligned": True, "size": 16},
    ],
    ids=str,
)
def test_what_kernels_do_not_take_goes_through_row_blocks(options):
    assert "tpu_custom_call" not in lowered("tpu", **options)


def test_shapes_that_kernels_take_on_any_mesh(any_mesh):
    """By default: programs hold every platform's implementation until they are lowered, and their types must agree."""
    case = make(Shape(rows=2, tokens=128, kv_heads=4, statistics=("all", "window")), seed=1)
    whole = (case.q, case.layer, jnp.asarray(case.index), case.statistics)
    placed = whole
    if any_mesh is not None:
        slots = {4: P("data", "tensor", None, None), 3: P("data", "tensor", None)}
        layer = jax.tree.map(lambda x: jax.device_put(x, slots.get(x.ndim, P())), case.layer)
        placed = (jax.device_put(case.q, P("data", None, "tensor", None)), layer, *jax.device_put(whole[2:], P("data")))
    check(case, *jax.jit(ALIGNED)(*placed))
    slope = jax.jit(jax.grad(lambda q, *rest: ALIGNED(q, *rest)[0].sum()))(*placed)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("kind", quick_first([AxisType.Explicit, AxisType.Auto]), ids=str)
@pytest.mark.parametrize("names", [{"data"}, {"data", "tensor"}], ids=len)
def test_shapes_that_kernels_take_in_a_callers_shard_map(kind, names):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind,) * 2)
    case = make(Shape(rows=2, tokens=128, kv_heads=4, statistics=("all", "window")), seed=1)
    arguments = (case.q, case.layer, jnp.asarray(case.index), case.statistics)
    specs = jax.tree.map(lambda x: P("data") if jnp.ndim(x) else P(), arguments)
    with jax.set_mesh(mesh):
        by_shard = jax.shard_map(ALIGNED, in_specs=specs, out_specs=(P("data"), (P("data"),) * 2), axis_names=names)
        check(case, *jax.jit(by_shard)(*jax.tree.map(jax.device_put, arguments, specs)))


def test_an_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="unknown implementation 'cuda' of attention; choose xla, tpu or gpu"):
        lowered("cpu", implementation="cuda")

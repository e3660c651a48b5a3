"""Attention as on TPUs (splash attention and column sums), in the TPU interpreter: numbers, meshes, transformations."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import acckv_jax as kv
from acckv_jax import attention
from acckv_jax.attention import attend
from acckv_jax.kernels import splash
from acckv_jax.testing import TinyTransformer
from tests.acckv_jax.kernels.cases import Shape, check, make
from tests.tiers import quick_first

EVERYTHING = ("all", "position", "text", "text off the diagonal", "window", "window off the diagonal")
ON_TPU = functools.partial(attend, aligned=True, implementation="tpu")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "_say_once", pytest.fail)  # nothing goes through row blocks instead
    with pltpu.force_tpu_interpret_mode():
        yield


CASES = [
    Shape(rows=1, prefix=40, tokens=80, size=128, dtype="bfloat16", statistics=("all", "position")),
    Shape(tokens=256, kv_heads=2, group=3, statistics=EVERYTHING),
    Shape(prefix=150, tokens=300, group=7, size=128, dtype="bfloat16", statistics=EVERYTHING),
    Shape(tokens=300, size=128, dtype="bfloat16", statistics=("window", "window off the diagonal")),
    Shape(rows=1, prefix=300, tokens=70, statistics=()),
]


@pytest.mark.parametrize("shape", quick_first(CASES), ids=str)
def test_numbers(shape):
    case = make(shape, seed=1)
    check(case, *jax.jit(ON_TPU)(case.q, case.layer, case.index, case.statistics))


@pytest.mark.complete
@pytest.mark.parametrize("seed", range(16))
def test_fuzz(seed):
    shape = Shape.draw(seed)
    case = make(shape, seed)
    out, sums = jax.jit(ON_TPU)(case.q, case.layer, case.index, case.statistics)
    check(case, out, sums)
    by_rows, _ = jax.jit(functools.partial(ON_TPU, implementation="xla"))(case.q, case.layer, case.index)
    difference = np.abs(np.asarray(out, np.float32) - np.asarray(by_rows, np.float32))[case.valid].max()
    assert difference < (2e-2 if shape.dtype == "bfloat16" else 1e-5)


@pytest.mark.complete
def test_long_prompts_are_divided_by_rows(monkeypatch):
    shape = Shape(rows=1, prefix=30, tokens=300, statistics=("all", "window"))
    case = make(shape, seed=2)
    monkeypatch.setattr(splash, "NORM_BYTES", 128 * shape.kv_heads * shape.group * 128 * 4)
    jax.clear_caches()
    program = jax.jit(ON_TPU)
    assert str(program.trace(case.q, case.layer, case.index, case.statistics).jaxpr).count("splash_mha_fwd") >= 3
    check(case, *program(case.q, case.layer, case.index, case.statistics))
    jax.clear_caches()


@pytest.mark.complete
def test_on_meshes(any_mesh):
    case = make(Shape(rows=2, prefix=20, tokens=128, kv_heads=4, statistics=("all", "position", "window")), seed=3)
    arguments = (case.q, case.layer, jnp.asarray(case.index), case.statistics)
    if any_mesh is not None:
        divided = {4: P("data", "tensor", None, None), 3: P("data", "tensor", None)}
        layer = jax.tree.map(lambda x: jax.device_put(x, divided.get(x.ndim, P())), case.layer)
        q = jax.device_put(case.q, P("data", None, "tensor", None))
        rest = jax.device_put(arguments[2:], P("data"))
        arguments = (q, layer, *rest)
    out, sums = jax.jit(ON_TPU)(*arguments)
    check(case, out, sums)
    if any_mesh is not None:
        assert out.sharding.is_equivalent_to(arguments[0].sharding, 4)
        assert all(each.sharding.is_equivalent_to(arguments[1].mass.sharding, 3) for each in sums)


@pytest.mark.complete
@pytest.mark.parametrize("spec", [P(), P(None, "data"), P(None, None, "tensor")], ids=str)
def test_inputs_of_other_sharding(spec):
    """Sequences or heads that the rules divide come divided otherwise."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    case = make(Shape(rows=2, tokens=128, kv_heads=4), seed=4)
    with jax.set_mesh(mesh):
        q = jax.device_put(case.q, spec)
        layer = jax.device_put(case.layer, P())
        check(case, *jax.jit(ON_TPU)(q, layer, jnp.asarray(case.index), case.statistics))


@pytest.mark.complete
def test_inside_vmap():
    cases = [make(Shape(tokens=128, statistics=("all", "window", "position")), seed) for seed in (5, 6)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *((c.q, c.layer, c.index, c.statistics) for c in cases))
    out, sums = jax.jit(jax.vmap(ON_TPU))(*stacked)
    for at, case in enumerate(cases):
        check(case, out[at], [each[at] for each in sums])


@pytest.mark.complete
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_inside_a_callers_shard_map(kind, check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    case = make(Shape(rows=2, tokens=128, kv_heads=2, statistics=("all", "window")), seed=7)
    specs = jax.tree.map(lambda x: P("data") if jnp.ndim(x) else P(), (case.q, case.layer, case.index, case.statistics))
    out_specs = (P("data"), (P("data"),) * 2)
    with jax.set_mesh(mesh):
        arguments = jax.tree.map(jax.device_put, (case.q, case.layer, jnp.asarray(case.index), case.statistics), specs)
        by_shard = jax.shard_map(ON_TPU, in_specs=specs, out_specs=out_specs, check_vma=check_vma)
        check(case, *jax.jit(by_shard)(*arguments))


@pytest.mark.complete
def test_derivatives_are_those_of_row_blocks():
    case = make(Shape(rows=1, tokens=128, statistics=("all", "position")), seed=8)

    def loss(q, implementation):
        out, sums = attend(q, case.layer, case.index, case.statistics, aligned=True, implementation=implementation)
        return (out**2).sum() + sum((each**2).mean() for each in sums)

    ours, expected = (jax.jit(jax.grad(functools.partial(loss, implementation=x)))(case.q) for x in ("tpu", "xla"))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.complete
def test_policies_score_and_keep_as_with_row_blocks():
    """Ragged prompts in two chunks, each of which has padding, and in one."""
    model = TinyTransformer(head_dim=64)
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(9)
    tokens = rng.integers(0, 32, (2, 2, 96)).astype(np.int32)  # two chunks of two prompts
    prompts = [kv.make_prompt(rng.integers(0, 3, (2, 96)), np.array(lengths)) for lengths in ([96, 70], [80, 96])]
    policies = (kv.H2O(budget=0.3), kv.SnapKV(budget=0.3, window_size=16), kv.AccKV(budget=0.5))

    @functools.partial(jax.jit, static_argnums=0)
    def chunks(decoder, params, tokens, prompts):
        _, first = kv.score(decoder, params, tokens[0], prompts[0], policies, complete=False)
        _, both = kv.score(decoder, params, tokens[1], prompts[1], policies, before=first)
        alone = kv.prefill(decoder, params, tokens[0], prompts[0], policies[0])[1]
        return both, tuple(kv.prune(both, policy) for policy in policies), alone

    found = {}
    for name in ("xla", "tpu"):
        decoder = kv.Decoder(model, model.num_layers, attention=name)
        found[name] = chunks(decoder, params, tokens, prompts)
    (scored, pruned, alone), expected = found["tpu"], found["xla"]
    for ours, theirs in zip(jax.tree.leaves(scored.sums), jax.tree.leaves(expected[0].sums), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.max()))
    for ours, theirs in zip((*pruned, alone), (*expected[1], expected[2]), strict=True):
        for layer, other in zip(ours.layers, theirs.layers, strict=True):
            np.testing.assert_array_equal(
                np.where(layer.valid, layer.index, -1), np.where(other.valid, other.index, -1)
            )

"""The contract on 8 devices (rule 8 of docs/cache.md): same results, shardings kept, no K or V moved."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import acckv_jax as kv
from acckv_jax.policy import between_steps
from acckv_jax.sharding import mesh_spec
from tests.acckv_jax.contract_cases import (
    BUCKET,
    CONTRACT,
    DECODER,
    LENGTHS,
    MODEL,
    episode,
    params_of,
    place_inputs,
    place_params,
    place_scored,
    random_inputs,
    run_episode,
    scored_by,
)
from tests.acckv_jax.test_contract import assert_same_cache, is_quantized
from tests.tiers import quick_first, quick_only
from tests.tolerances import FP32, LOGITS, QUANTIZED

OF_ALL_HEADS = {
    **dict.fromkeys(("tova", "fastv", "protected_fastv", "clie_snapkv", "clie_acckv_plus_every_4"), 1),
    "omni_mem": 4,
}
"""Policies with a score for all heads of a token, a sum over devices: how many such numbers are summed at once."""
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SHAPE = re.compile(r"[a-z]\w*\[([\d,]*)\]")


def moved(hlo: str) -> list[tuple[str, int]]:
    """Every collective of a compiled program, with the number of elements it moves."""
    found = []
    for line in hlo.splitlines():
        match = COLLECTIVE.search(line)
        if match:
            sizes = (math.prod(int(n) for n in dims.split(",") if n) for dims in SHAPE.findall(match[1]))
            found.append((match[2], sum(sizes)))
    return found


def test_moved_reads_collectives():
    hlo = "  %ag = f32[4,4,96,8]{3,2,1,0} all-gather(%p), channel_id=1\n  %ar = (f32[4,2], s32[4]) all-reduce(%a, %b)"
    assert moved(hlo) == [("all-gather", 4 * 4 * 96 * 8), ("all-reduce", 12)]


def set_mesh(kind: str):
    axis = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    return jax.set_mesh(jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(axis, axis)))


def assert_same_episode(run, expected):
    tolerance = QUANTIZED if is_quantized(expected.pruned.layers[0]) else LOGITS
    for field in ("logits", "step_logits", "question_logits"):
        np.testing.assert_allclose(getattr(run, field), getattr(expected, field), **tolerance)
    for field in ("pruned", "decoded", "extended"):
        assert_same_cache(getattr(run, field), getattr(expected, field), **FP32)


@pytest.mark.parametrize("name", quick_only(CONTRACT, ("per_layer_acckv_plus",)))
def test_rule_8_eight_devices_equal_one(name):
    with set_mesh("explicit"):
        run = run_episode(MODEL, CONTRACT[name], place_params(params_of()), place_inputs(random_inputs()))
    for cache in (run.pruned, run.decoded, run.extended):
        for layer in cache.layers:
            for x in (
                *jax.tree.leaves((layer.k, layer.v)),
                layer.index,
                layer.valid,
                layer.multiplicity,
                layer.mass,
                layer.modality,
            ):
                assert tuple(jax.typeof(x).sharding.spec)[:2] == ("data", "tensor")
    assert_same_episode(jax.device_get(run), episode(name))


@pytest.mark.complete
@pytest.mark.parametrize("name", ["acckv", "h2o_every_4"])
def test_rule_8_eight_devices_equal_one_on_an_auto_mesh(name):
    with set_mesh("auto"):
        run = run_episode(MODEL, CONTRACT[name], place_params(params_of()), place_inputs(random_inputs()))
    assert_same_episode(jax.device_get(run), episode(name))


@pytest.mark.parametrize("kind", quick_first(["explicit", "auto"]))
@pytest.mark.parametrize("name", quick_only(["full", "h2o_every_4", "acckv_summary"], ["h2o_every_4"]))
def test_rule_8_the_decode_loop_on_a_mesh_equals_one_device(name, kind):
    policy = CONTRACT[name]
    loop = jax.jit(
        lambda params, state: kv.decode(DECODER, params, state, policy, steps=3),
        donate_argnums=1,
    )

    def two_calls(params, scored, logits):
        cache = kv.prune(scored, policy, reserved_slots=policy.reserved_slots(6))
        state = kv.start_decoding(logits, cache, jax.random.key(0))
        spec = jax.typeof(state.cache.layers[0].k).sharding.spec
        first, _, state = loop(params, state=state)
        second, _, state = loop(params, state=state)
        assert jax.typeof(state.cache.layers[0].k).sharding.spec == spec
        return jax.device_get((first, second, state.cache))

    *expected, cache = two_calls(params_of(), scored_by(name), jnp.array(episode(name).logits))
    with set_mesh(kind):
        logits = jax.device_put(episode(name).logits, mesh_spec("data"))
        *found, on_mesh = two_calls(place_params(params_of()), place_scored(scored_by(name)), logits)
    np.testing.assert_array_equal(found, expected)
    assert_same_cache(on_mesh, cache, **FP32)


@pytest.mark.parametrize("name", quick_first(["streaming_llm", "acckv_plus_every_4"]))
def test_rule_8_heads_that_do_not_divide_are_replicated(name):
    model = dataclasses.replace(MODEL, heads=6, kv_heads=3)
    params, inputs = params_of(model), random_inputs(model)
    expected = run_episode(model, CONTRACT[name], params, inputs)
    with set_mesh("explicit"):
        run = run_episode(model, CONTRACT[name], place_params(params, model), place_inputs(inputs))
    for layer in run.extended.layers:
        assert tuple(jax.typeof(layer.k).sharding.spec)[:2] == ("data", None)
    assert_same_episode(jax.device_get(run), jax.device_get(expected))


@pytest.mark.parametrize("kind", quick_first(["explicit", "auto"]))
@pytest.mark.parametrize("name", quick_only(CONTRACT, ("acckv", "quantized_h2o_every_4")))
def test_rule_8_a_prune_moves_no_keys_or_values_and_keeps_shardings(name, kind):
    policy, scored = CONTRACT[name], scored_by(name)
    with set_mesh(kind):
        scored = place_scored(scored)
        program = jax.jit(kv.prune, static_argnames=("policy", "reserved_slots"))
        compiled = program.lower(scored, policy, reserved_slots=4).compile()
        pruned = compiled(scored)
    rows = len(LENGTHS) // 2  # on each device
    tokens = MODEL.layers * rows * BUCKET
    most = OF_ALL_HEADS.get(name, 0) * tokens + BUCKET
    found = moved(compiled.as_text())
    assert all(size < most < tokens * MODEL.head_dim for _, size in found), found
    for before, after in zip(scored.cache.layers, pruned.layers, strict=True):
        for field in ("k", "v", "index", "modality", "valid", "multiplicity", "mass", "budget", "finite", "next_slot"):
            old = getattr(before, field)
            for new in jax.tree.leaves(getattr(after, field)):
                assert new.sharding.is_equivalent_to(old.sharding, new.ndim), field
                if kind == "explicit":
                    assert jax.typeof(new).sharding.spec == jax.typeof(old).sharding.spec, field
    assert_same_cache(jax.device_get(pruned), episode(name).pruned, **FP32)


@pytest.mark.parametrize("name", quick_first(["h2o", "streaming_llm", "acckv_every_2"]))
def test_rule_8_an_eviction_while_decoding_moves_no_keys_or_values(name):
    policy = kv.EvictEvery(CONTRACT[name], 4)
    scored = scored_by(name)
    with set_mesh("explicit"):
        cache = place_scored(scored).cache
        evict = functools.partial(between_steps, policy, number=0, num_layers=MODEL.layers)
        compiled = jax.jit(evict).lower(cache.layers[0], cache=cache).compile()
    assert all(size < BUCKET for _, size in moved(compiled.as_text())), moved(compiled.as_text())

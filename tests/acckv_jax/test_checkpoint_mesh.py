"""A cache that is pruned on one mesh and decoded on another gives the tokens of one device and of no saving."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import acckv_jax as kv
from acckv_jax.checkpoint_tree import placement
from acckv_jax.sharding import mesh_spec
from tests.acckv_jax.contract_cases import (
    CONTRACT,
    DECODER,
    MODEL,
    ROWS,
    params_of,
    place_params,
    place_scored,
    scored_by,
)
from tests.acckv_jax.test_checkpoint import assert_equal
from tests.processes import Processes
from tests.tiers import quick_only

STEPS = 3
MESHES = {
    "one device": None,
    "2x4": ((2, 4), ("data", "tensor"), AxisType.Explicit),
    "2x4 auto": ((2, 4), ("data", "tensor"), AxisType.Auto),
    "4x2": ((4, 2), ("data", "tensor"), AxisType.Explicit),
    "4x2 auto": ((4, 2), ("data", "tensor"), AxisType.Auto),
    "8": ((8,), ("tensor",), AxisType.Explicit),  # does not divide 4 KV heads
}
LOGITS = np.random.default_rng(0).normal(size=(ROWS, MODEL.vocab)).astype(np.float32)
SAMPLER = kv.Sample(temperature=1.0)
ROUTES = [
    ("2x4", "one device"),
    ("one device", "2x4"),
    ("2x4 auto", "4x2"),
    ("4x2", "4x2 auto"),
    ("4x2 auto", "8"),
    ("one device", "2x4 auto"),
]
NAMES = ("quantized_h2o_every_4", "per_layer_h2o_every_4", "acckv_plus", "quantized_4_snapkv")
QUICK = [(*ROUTES[0], NAMES[0]), (*ROUTES[1], NAMES[0]), (*ROUTES[2], NAMES[1])]


def on(kind: str):
    if MESHES[kind] is None:
        return contextlib.nullcontext()
    shape, names, axis_type = MESHES[kind]
    return jax.set_mesh(jax.make_mesh(shape, names, axis_types=(axis_type,) * len(names)))


def pruned_on(kind: str, name: str) -> kv.DecodeState:
    """The prompt of the contract, pruned where it lies, and the first token."""
    policy, scored, logits = CONTRACT[name], scored_by(name), LOGITS
    with on(kind):
        if MESHES[kind] is not None:
            scored, logits = place_scored(scored), jax.device_put(logits, mesh_spec("data"))
        cache = kv.prune(scored, policy, reserved_slots=policy.reserved_slots(2 * STEPS))
        return kv.start_decoding(jnp.asarray(logits), cache, jax.random.key(1), sampler=SAMPLER)


def decoded_on(kind: str, name: str, state: kv.DecodeState) -> jax.Array:
    params = params_of() if MESHES[kind] is None else place_params(params_of())
    tokens, _, _ = kv.jitted.decode(DECODER, params, state, CONTRACT[name], steps=STEPS, sampler=SAMPLER)
    return tokens


@pytest.mark.parametrize(
    ("source", "target", "name"), quick_only([(*route, name) for route in ROUTES for name in NAMES], QUICK)
)
def test_pruned_on_one_mesh_and_decoded_on_another(source, target, name, tmp_path):
    state = pruned_on(source, name)
    with on(source):
        kv.save_cache(tmp_path / "clip", state, model=kv.ModelIdentity("llama", MODEL.layers, 4, 8))
    with on(target):
        loaded = kv.load_cache(tmp_path / "clip", model="llama")
        assert_equal(jax.device_get(loaded), jax.device_get(state))
        heads = None if target == "8" else "tensor"
        for layer in loaded.cache.stacks if MESHES[target] else ():
            for x in jax.tree.leaves((layer.k, layer.v, layer.index, layer.mass)):
                assert tuple(x.sharding.spec)[:2] == (None if target == "8" else "data", heads)
                assert x.sharding.mesh == jax.sharding.get_mesh()
        found = decoded_on(target, name, loaded)
    np.testing.assert_array_equal(found, decoded_on("one device", name, pruned_on("one device", name)))


def test_shardings_of_a_prompt_that_was_scored(tmp_path):
    """Loaded arrays lie where arrays of the same prompt lie that was read on the mesh."""
    scored = scored_by("h2o")
    kv.save_cache(tmp_path / "prompt", scored)
    with on("2x4"):
        placed, loaded = place_scored(scored), kv.load_cache(tmp_path / "prompt")
    assert_equal(jax.device_get(loaded), jax.device_get(scored))
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(placed), strict=True):
        assert jax.typeof(one).sharding.spec == jax.typeof(other).sharding.spec


def test_axes_of_arrays():
    """By name; of stacks too, over axes of other names, and where rows or heads do not divide."""
    with on("2x4"):
        place = placement(4, kv.ShardingRules())
        assert place("inputs.0.unrotated_q", (3, 2, 9, 8, 4)).spec == P(None, "data", None, "tensor", None)
        assert place("inputs.0.output_weights", (8, 4, 16)).spec == P("tensor", None, None)
        assert place("cache.stacks.1.k.scale", (1, 4, 1, 8)).spec == P(None, "tensor", None, None)
        assert place("cache.stacks.0.next_slot", (3,)).spec == place("key", (2,)).spec == P(None)
        assert placement(3, kv.ShardingRules())("cache.stacks.0.k", (2, 3, 9, 8)).spec == P("data", None, None, None)
        swapped = placement(4, kv.ShardingRules(batch=("tensor", "none"), heads="data"))
        assert swapped("cache.stacks.0.sums.1", (3, 4, 4, 9)).spec == P(None, "tensor", "data", None)


@pytest.mark.complete
@pytest.mark.packaging
def test_two_processes_save_and_load(tmp_path):
    """Two processes of four devices each: saved from one mesh, loaded onto another, errors raised in both."""
    name = "quantized_h2o_every_4"
    with Processes.start("tests.acckv_jax.checkpoint_processes", [str(tmp_path)]) as two:
        expected = decoded_on("one device", name, pruned_on("one device", name)).tolist()
        outputs = two.outputs(600)
    assert [status for status, _, _ in outputs] == [0, 0], outputs
    for _, out, _ in outputs:
        told = json.loads(out.splitlines()[-1])
        assert told["saved"] == told["loaded"] == expected
        assert "clip exists already" in told["exists"] and "call jax.set_mesh" in told["without a mesh"]
        assert "_METADATA is damaged" in told["damaged"]
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]

"""The contract as seen in traced and compiled programs: rules 6, 7, 9, 10 and 11 of docs/cache.md."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import acckv_jax as kv
from acckv_jax.testing import tiny_decoder
from tests.acckv_jax.contract_cases import (
    CONTRACT,
    DECODER,
    LENGTHS,
    MODEL,
    decoder_of,
    episode,
    is_by_row,
    params_of,
    scored_by,
)
from tests.acckv_jax.test_contract import assert_same_cache
from tests.programs import new_programs
from tests.tiers import quick_first, quick_only

LONG = 1024


@pytest.fixture(autouse=True)
def no_traces_so_far():
    """Chex counts by source code, so across the cases of one test."""
    chex.clear_trace_counter()


def long_prompt(tokens: int = LONG, rows: int = 1) -> tuple[jax.Array, kv.Prompt]:
    ids = np.repeat([0, 1, 2, 0], [8, tokens // 2, tokens // 2 - 16, 8])[None].repeat(rows, 0)
    return jnp.ones((rows, tokens), jnp.int32), kv.make_prompt(ids)


@pytest.mark.parametrize("name", quick_only(name for name, policy in CONTRACT.items() if not policy.second_pass))
def test_rule_6_as_many_programs_as_buckets(name):
    program = jax.jit(
        chex.assert_max_traces(lambda *args, **kw: kv.prefill(*args, **kw), n=2),
        static_argnames=("decoder", "policy", "reserved_slots"),
    )
    buckets = set()
    for length in range(29, 129):
        bucket = kv.bucket_length(length, steps_per_octave=1)
        buckets.add(bucket)
        prompt = kv.make_prompt(np.ones((1, bucket), int), np.array([length]))
        same = dataclasses.replace(CONTRACT[name])  # a policy made anew for every request
        arguments = {"decoder": DECODER, "params": params_of_shapes(), "inputs": np.zeros((1, bucket), np.int32)}
        program.trace(**arguments, prompt=prompt, policy=same, reserved_slots=4)
    assert buckets == {64, 128}


def test_rule_6_of_another_budget_or_policy_only_the_prune_is_compiled():
    """On the path that scores once: decoding is compiled where a capacity is new, or the policy prunes in its midst."""
    decoder, params, inputs, prompt = tiny_decoder(scans=True)
    policies = (kv.SnapKV(window_size=8), kv.AccKV(budget=0.5, tau=0.3), kv.H2O())
    logits, scored = kv.jitted.score(decoder, params, inputs, prompt, policies)

    def programs(policy: kv.CachePolicy) -> set[str]:
        with new_programs() as found:
            cache = kv.prune(scored, policy, reserved_slots=16)
            state = kv.start_decoding(logits, cache, jax.random.key(0))
            kv.jitted.decode(decoder, params, state, policy.while_decoding(), steps=16)
        return set(found)

    programs(kv.SnapKV(budget=0.5, window_size=8))
    prune, decode = "jit(_scan_prune)", "jit(decode)"
    assert programs(kv.SnapKV(budget=0.25, window_size=8)) == {prune, decode}
    assert programs(kv.AccKV(budget=0.25, tau=0.3)) == {prune}
    assert programs(kv.AccKV(budget=0.5, tau=0.3)) == {prune}
    assert programs(kv.H2O(budget=0.25, evict_every=16)) == {prune, decode}
    assert not programs(kv.H2O(budget=0.25, evict_every=16))


@functools.cache
def params_of_shapes():
    return jax.eval_shape(params_of)


@pytest.mark.parametrize("name", quick_only(CONTRACT))
def test_rules_6_and_7_decoding_is_one_program_donates_and_keeps_requests_apart(name):
    policy, params, first = CONTRACT[name], params_of(), episode(name)

    def decode(params: dict, state: kv.DecodeState):
        return kv.decode(DECODER, params, state, policy, steps=3)

    program = jax.jit(chex.assert_max_traces(decode, n=1), donate_argnames="state")

    def request(flipped: bool) -> kv.DecodeState:
        rows = jax.tree.map(lambda x: jnp.array(np.flip(x, 0) if flipped and x.ndim else x), first.pruned)
        logits = jnp.array(np.flip(first.logits, 0) if flipped else first.logits)
        return kv.start_decoding(logits, rows, jax.random.key(0))

    def finish(state: kv.DecodeState) -> np.ndarray:
        parts = []
        for _ in range(2):
            before = [x for layer in state.cache.layers for x in jax.tree.leaves((layer.k, layer.v))]
            places = {x.unsafe_buffer_pointer() for x in before}
            tokens, number, state = program(params, state)
            assert int(number) == 3
            parts.append(np.asarray(tokens))
            assert all(x.is_deleted() for x in before)
            after = [x for layer in state.cache.layers for x in jax.tree.leaves((layer.k, layer.v))]
            assert {x.unsafe_buffer_pointer() for x in after} == places
        return np.concatenate(parts, axis=1)

    alone = finish(request(False)), finish(request(True))
    np.testing.assert_array_equal(alone[0], np.flip(alone[1], 0))
    states, tokens = [request(False), request(True)], ([], [])
    for _ in range(2):
        for number, state in enumerate(states):
            some, _, states[number] = program(params, state)
            tokens[number].append(np.asarray(some))
    np.testing.assert_array_equal(alone, [np.concatenate(parts, axis=1) for parts in tokens])


@pytest.mark.parametrize("name", quick_only(CONTRACT, ("acckv_plus", "h2o_every_4")))
def test_rule_7_inside_vmap_scan_and_shard_map(name):
    policy, scored = CONTRACT[name], scored_by(name)
    count = MODEL.layers if name.startswith(("per_layer", "clie", "pyramid_kv")) or "fastv" in name else 1
    cache = dataclasses.replace(scored.cache, stacks=scored.cache.stacks[:count])
    scored = dataclasses.replace(scored, cache=cache, sums=scored.sums[:count], inputs=scored.inputs[:count])

    def prune(part: kv.Scored) -> kv.KVCache:
        return kv.prune(part, policy, reserved_slots=2)

    def requests(part: kv.Scored) -> kv.Scored:
        """Rows as requests of one row, stacked on a new leading axis."""

        def rows(path, x: jax.Array) -> jax.Array:
            return x[:, None] if x.ndim and is_by_row(path) else jnp.broadcast_to(x[None], (len(LENGTHS), *x.shape))

        return jax.tree_util.tree_map_with_path(rows, part)

    def by_row(tree):
        def spec(path, x):
            return PartitionSpec("data") if x.ndim and is_by_row(path) else PartitionSpec()

        return jax.tree_util.tree_map_with_path(spec, tree)

    sharded = jax.shard_map(
        prune, mesh=two_devices(), in_specs=(by_row(scored),), out_specs=by_row(jax.eval_shape(prune, scored))
    )

    def all_ways(part: kv.Scored):
        stacked = requests(part)
        return jax.vmap(prune)(stacked), jax.lax.map(prune, stacked), sharded(part)

    mapped, scanned, split = jax.device_get(jax.jit(all_ways)(scored))
    expected = dataclasses.replace(episode(name).pruned, stacks=episode(name).pruned.stacks[:count])
    for stacked in (mapped, scanned):
        assert_same_cache(jax.tree.map(lambda x: x[:, 0] if x.ndim > 1 else x[0], stacked), expected, rtol=1e-6)
    assert_same_cache(split, expected, rtol=1e-6)


@pytest.mark.complete
def test_rule_7_decoding_inside_vmap_and_shard_map():
    policy, first = CONTRACT["h2o_every_4"], episode("h2o_every_4")
    state = kv.start_decoding(jnp.array(first.logits), jax.tree.map(jnp.array, first.pruned), jax.random.key(0))
    params = params_of()

    def decode(state: kv.DecodeState) -> jax.Array:
        return kv.decode(DECODER, params, state, policy, steps=6)[0]

    expected = jax.jit(decode)(state)
    twice = jax.tree.map(lambda x: jnp.stack([x, jnp.flip(x, 0) if x.ndim else x]), state)
    both = jax.jit(jax.vmap(decode))(twice)
    np.testing.assert_array_equal(both, [expected, np.flip(expected, 0)])
    specs = jax.tree.map(lambda x: PartitionSpec("data") if x.ndim else PartitionSpec(), state)
    split = jax.shard_map(decode, mesh=two_devices(), in_specs=(specs,), out_specs=PartitionSpec("data"))
    np.testing.assert_array_equal(jax.jit(split)(state), expected)


def two_devices() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))


def arrays_of(jaxpr) -> list[tuple[str, tuple[int, ...]]]:
    """Primitive and shape of every intermediate array of a jaxpr, those of inner jaxprs included."""
    found = []
    for equation in jaxpr.eqns:
        found += [(equation.primitive.name, x.aval.shape) for x in equation.outvars if hasattr(x.aval, "shape")]
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += arrays_of(inner)
    return found


@pytest.mark.parametrize("name", quick_only(CONTRACT))
def test_rule_9_no_quadratic_array_and_no_host_callback(name):
    tokens, prompt = long_prompt()

    def run(params, tokens, prompt):
        policy = CONTRACT[name]
        _, scored = kv.score(DECODER, params, tokens, prompt, (policy,))
        if policy.second_pass:
            return kv.prune(kv.probe(DECODER, params, tokens, prompt, scored, (policy,)), policy)
        one_shot = kv.prefill(DECODER, params, tokens, prompt, policy)
        return one_shot, kv.prune(scored, policy)

    arrays = arrays_of(jax.jit(run).trace(params_of_shapes(), tokens, prompt).jaxpr)
    assert any(LONG in shape for _, shape in arrays) and any(p == "scan" for p, _ in arrays)
    assert [shape for _, shape in arrays if sum(n >= LONG for n in shape) > 1] == []
    assert {p for p, _ in arrays if "callback" in p or p in ("infeed", "outfeed")} == set()


@pytest.mark.parametrize("name", quick_only(CONTRACT))
def test_rule_11_keys_and_values_are_never_repeated(name):
    tokens, prompt = long_prompt(rows=2)
    more, question = long_prompt(160, rows=2)

    def run(params, tokens, prompt, more, question):
        policy = CONTRACT[name]
        _, scored = kv.score(DECODER, params, tokens, prompt, (policy,), complete=False)
        if policy.second_pass:
            scored = kv.probe(DECODER, params, more, question, scored, (policy,))
        _, scored = kv.score(DECODER, params, more, question, (policy,), before=scored)
        cache = kv.prune(scored, policy, reserved_slots=7)
        return kv.decode_step(DECODER, params, tokens[:, 0], cache, policy, prompt.length > 0)

    policy = CONTRACT[name].for_layers(MODEL.layers)
    capacities = (policy.capacity(LONG + 160, layer) for layer in range(MODEL.layers))
    slots = {LONG + 160, *(capacity + 7 for capacity in capacities)}
    arrays = arrays_of(jax.jit(run).trace(params_of_shapes(), tokens, prompt, more, question).jaxpr)
    heads = MODEL.heads if "unrotated_q" in policy.needs else MODEL.kv_heads  # queries of all slots have more
    for _, shape in arrays:
        if slots & set(shape) and shape[-1] == MODEL.head_dim:
            assert np.prod(shape) <= 2 * heads * max(slots & set(shape)) * MODEL.head_dim, shape


@pytest.mark.parametrize("name", quick_first(["h2o", "acckv"]))
def test_rule_10_only_compressed_layers_accumulate(name):
    policy = dataclasses.replace(CONTRACT[name], budget=0.125)
    tokens, prompt = long_prompt()

    def memory(layers: int):
        model = dataclasses.replace(MODEL, layers=layers)
        shapes = jax.eval_shape(lambda: params_of(model))
        lowered = kv.jitted.prefill.lower(decoder_of(model), shapes, tokens, prompt, policy)
        return lowered.compile().memory_analysis()

    two, four = memory(2), memory(4)
    full_layer = 2 * LONG * MODEL.kv_heads * MODEL.head_dim * 4
    metadata = LONG // 8 * MODEL.kv_heads * (4 + 1 + 1 + 4 + 4) + 128  # with per-row numbers and pointers
    kept = four.output_size_in_bytes - two.output_size_in_bytes
    assert full_layer // 8 * 2 <= kept <= 2 * (full_layer // 8 + metadata)
    # Peak counts live buffers; the temporary size of XLA counts the gaps between them as well.
    weights = four.argument_size_in_bytes - two.argument_size_in_bytes
    assert four.peak_memory_in_bytes - two.peak_memory_in_bytes < weights + kept + full_layer // 16


def test_rule_10_nothing_of_a_layer_is_put_off():
    """Else XLA for TPUs makes all layers' NaN flags at the end, and keeps every layer's attention output until then."""
    tokens, prompt = long_prompt()
    policy = CONTRACT["full"]
    run = functools.partial(kv.prefill, DECODER, policy=policy)
    found = arrays_of(jax.jit(run).trace(params_of_shapes(), tokens, prompt).jaxpr)
    ends = [shape for name, shape in found if name == "optimization_barrier" and shape[1:2] == tokens.shape[1:]]
    assert ends == [(*tokens.shape, MODEL.heads, MODEL.head_dim)] * MODEL.layers

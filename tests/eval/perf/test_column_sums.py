"""Attention with column sums compiles for TPUs that are not there, alone and on meshes; users' mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from acckv_jax.attention import QueryWeights, attend
from acckv_jax.cache import full_layer
from eval.perf.column_sums import Options, block_traffic, main
from eval.perf.topologies import find_topology

CHIPS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@pytest.mark.complete
def test_table(capsys):
    assert main(["--topologies", *CHIPS, "--context", "512"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    programs = ["attention alone", "with sums of all rows", "with sums of 32 rows", "row blocks, sums of all rows"]
    assert [row[:2] for row in found] == [[chip, program] for chip in ("v5e", "v5p", "v6e") for program in programs]
    assert all(float(row[4]) >= 0 and (row[5] == "") == row[1].startswith("row blocks") for row in found)


@pytest.mark.complete
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize(
    ("prefix", "tokens", "heads", "kv_heads", "size", "dtype"),
    [
        (0, 2048, 14, 2, 128, "bfloat16"),
        (1000, 600, 4, 4, 64, "float32"),
        (64, 100, 9, 3, 64, "bfloat16"),  # heads that the mesh does not divide
    ],
)
def test_compiles_on_meshes(chip, kind, prefix, tokens, heads, kv_heads, size, dtype):
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(kind,) * 2, devices=find_topology(chip).devices)
    slots, tensor = prefix + tokens, "tensor" if kv_heads % 2 == 0 else None

    def run(q, k, v, valid, weights):
        index = jnp.zeros_like(valid, jnp.int32) + jnp.arange(slots, dtype=jnp.int32)[None, :]
        layer = full_layer(k, v, index, jnp.zeros_like(index, jnp.int8), valid)
        stats = (
            QueryWeights(weights),
            QueryWeights(weights, exclude_diagonal=True),
            QueryWeights(weights, window=32),
        )
        rows = index[:, prefix:]
        everything = attend(q, layer, rows, stats, aligned=True)
        return everything, attend(q, layer, rows, stats[2:], aligned=True), attend(q, layer, rows, aligned=True)

    with jax.set_mesh(mesh):

        def array(shape, dtype, *spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P(*spec)))

        keys = array((4, slots, kv_heads, size), dtype, "data", None, tensor)
        program = jax.jit(run).lower(
            array((4, tokens, heads, size), dtype, "data", None, tensor),
            keys,
            keys,
            array((4, slots), bool, "data"),
            array((4, tokens), jnp.float32, "data"),
        )
        hlo = program.compile().as_text() or ""
    assert hlo.count("tpu_custom_call") >= 4  # equal calls become one
    # Rule 8 of docs/cache.md: with rows and heads divided, nothing moves.
    assert not any(word in hlo for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


@pytest.mark.complete
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("names", [{"data"}, {"data", "tensor"}], ids=len)
def test_compiles_in_a_callers_shard_map(kind, names):
    """Kernels divide what the caller has not divided; the interpreter cannot run that."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), axis_types=(kind,) * 2, devices=find_topology(CHIPS[0]).devices)

    def run(q, k, index, weights):
        layer = full_layer(k, k, index, jnp.zeros_like(index, jnp.int8), index >= 0)
        return attend(q, layer, index, (QueryWeights(weights),), aligned=True)

    with jax.set_mesh(mesh):

        def array(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh, P("data")))

        keys = array((2, 256, 4, 64), jnp.bfloat16)
        by_shard = jax.shard_map(run, in_specs=P("data"), out_specs=P("data"), axis_names=names)
        program = jax.jit(by_shard).lower(keys, keys, array((2, 256), jnp.int32), array((2, 256), jnp.float32))
        hlo = program.compile().as_text() or ""
    heads = 2 if names == {"data"} else 4
    assert hlo.count("tpu_custom_call") == 2 and f"f32[1,{heads},1,256]" in hlo  # the sums of a device


def test_traffic_of_blocks():
    options = Options(context=1024, heads=2, size=64)
    rows, blocks = 1024, 2 * 1024  # keys and values: two blocks of 512 rows see one block of 1,024 slots
    flash = 2 * (rows * (2 * 64 * 2) + blocks * 2 * 64 * 2)
    assert block_traffic(options, None) == flash
    norms = 2 * rows * 128 * 4
    sums = rows * (2 * (64 * 2 + 4) + 4) + rows * (64 * 2 + 4)  # queries and keys once
    assert block_traffic(options, 1024) == flash + norms + sums
    assert block_traffic(dataclasses.replace(options, rows=3), 1024) == 3 * (flash + norms + sums)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--heads", "7", "--kv-heads", "2"], "--heads a multiple of --kv-heads"),
        (["--context", "0"], "Sizes must be at least 1"),
        (["--topologies", "8 chips"], "There is no topology '8 chips'"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err

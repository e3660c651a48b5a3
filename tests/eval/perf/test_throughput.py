"""Throughput of a tiny model on one CPU device and on a mesh of eight, and users' mistakes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import acckv_jax as kv
from eval.perf import throughput
from eval.perf.throughput import Options, Row, main, measure, repeated, table

SMALL = ["--model", "tiny", "--context", "128", "--steps", "2", "--repeats", "1", "--budgets", "0.75"]
SLOT = 2 * 3 * 2 * 16 * 2
"""Bytes of K and V of a token of the tiny thinker: layers, KV heads, head size, bfloat16."""


def test_rows(capsys, tmp_path):
    out = tmp_path / "found.json"
    arguments = ["--batches", "2", "--policies", "snapkv", "--memory", "0.01", "--json", "--out", str(out)]
    assert main([*SMALL, *arguments]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert json.loads(out.read_text())["rows"] == [row]
    assert (row["policy"], row["budget"], row["batch"], row["problem"]) == ("snapkv", 0.75, 2, None)
    assert row["tokens_per_second"] == pytest.approx(2e3 / row["decode_ms"])
    assert row["prefill_rows_per_second"] > 0
    keys_and_values = (96 + 2) * SLOT
    assert keys_and_values < row["row_bytes"] < 1.5 * keys_and_values
    room = int(0.01 * 2**30) - row["temporaries"]  # the weights, of less than 200 kB, also fit
    assert (room - 200_000) / (row["row_bytes"] + row["temporaries"] / 2) - 1 < row["rows_that_fit"]
    assert row["rows_that_fit"] <= room / row["row_bytes"]


@pytest.mark.complete
def test_on_a_mesh():
    """Four rows are a group; rows that fit are those of all devices."""
    options = {"model": "tiny", "context": 128, "steps": 2, "repeats": 1, "budgets": (0.75,), "memory": 0.01}
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)):
        (row,) = measure(Options(policies=("acckv",), batches=(8,), **options))
    (alone,) = measure(Options(policies=("acckv",), batches=(2,), **options))
    assert row.row_bytes == pytest.approx(alone.row_bytes, abs=16)  # a few numbers are of all rows together
    assert row.tokens_per_second == pytest.approx(8e3 / row.decode_ms)
    assert row.rows_that_fit > 4 * alone.rows_that_fit  # each device holds half of a row
    assert row.rows_that_fit % 4 == 0


def test_repeated_rows_are_those_of_the_cache():
    """On a mesh too, where each shard repeats its own rows, without moving any."""

    def cache(*shape: int) -> kv.LayerCache:
        x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
        return kv.LayerCache(x, x, *[x[..., 0]] * 5, x[..., 0, 0, 0], jnp.zeros(shape[:-4]), x[..., 0, 0, 0])

    length = jnp.arange(2)
    whole = kv.KVCache((cache(2, 1, 3, 4), cache(5, 2, 1, 3, 4)), length, length)
    twice = repeated(whole, 2)
    np.testing.assert_array_equal(twice.stacks[0].k, np.tile(whole.stacks[0].k, (2, 1, 1, 1)))
    np.testing.assert_array_equal(twice.stacks[1].k, np.tile(whole.stacks[1].k, (1, 2, 1, 1, 1)))
    assert twice.stacks[1].next_slot.shape == (5,) and twice.length.tolist() == [0, 1, 0, 1]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    placed = jax.device_put(length, jax.NamedSharding(mesh, jax.P("data")))
    found = throughput._repeated(placed, 3, 0)
    assert found.tolist() == [0, 0, 0, 1, 1, 1] and found.sharding == placed.sharding


def test_a_batch_that_does_not_fit(monkeypatch):
    """The others are measured."""
    whole = throughput.Measured._decode

    def limited(self, logits, cache, policy, times):
        if times > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return whole(self, logits, cache, policy, times)

    monkeypatch.setattr(throughput.Measured, "_decode", limited)
    options = Options(
        model="tiny", context=128, steps=2, repeats=1, budgets=(0.75,), batches=(2, 1), policies=("snapkv",)
    )
    small, fitting = measure(options)
    assert small.problem == "out of memory: 2 rows cannot be decoded" and small.decode_ms is None
    assert fitting.problem is None and fitting.rows_that_fit is None  # a CPU's memory is not known


def test_table():
    rows = [Row("full", 1.0, 4, 2.5, 20.0, 200.0, 3_000_000, 1_500_000, 1234), Row("full", 1.0, 8, problem="too large")]
    shown = table(rows, Options(model="tiny"))
    assert [list(column.cells) for column in shown.columns] == [
        ["full", "full"],
        ["1", "1"],
        ["4", "8"],
        ["2.5", ""],
        ["20.00", "too large"],
        ["200.0", ""],
        ["3.00", ""],
        ["1.5", ""],
        ["1,234", ""],
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "gpt2"], "Unknown model 'gpt2'"),
        (["--context", "64"], "--context must be at least 65 tokens"),
        (["--model", "qwen2", "--context", "32767"], "must be at most 32768 together for qwen2, not 32769"),
        (["--batches", "0"], "--batches, --steps and --repeats must be at least 1"),
        (["--steps", "0"], "--batches, --steps and --repeats must be at least 1"),
        (["--policies", "lru"], "unknown policy 'lru'"),
        (["--budgets", "0.1"], "Policy snapkv at budget 0.1: "),
        (["--out", "nowhere/found.json"], "There is no folder nowhere"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_rows_that_cannot_be_divided():
    with (
        jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))),
        pytest.raises(throughput.UserError, match="--batches 4 cannot be divided over the 8 shards of rows"),
    ):
        next(measure(Options(model="tiny", batches=(8, 4))))

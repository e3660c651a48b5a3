"""The profile of a small prompt, and users' mistakes."""

import io
import json

import jax
import pytest
from rich.console import Console

from eval.perf.bench import random_qwen2
from eval.perf.decode import Options, Row, Shared, main, table

SMALL = ["--context", "128", "--steps", "2", "--repeats", "1"]


@pytest.mark.complete
def test_rows(capsys):
    arguments = [*SMALL, "--policies", "acckv", "--budgets", "0.75", "--shared", "0.75", "--json"]
    assert main(arguments) == 0
    full, pruned, shared = map(json.loads, capsys.readouterr().out.splitlines())
    assert (full["policy"], full["budget"], pruned["policy"], pruned["budget"]) == ("full", 1.0, "acckv", 0.75)
    slot = 2 * 8 * 4 * 64 * 4  # K and V, layers, KV heads, head size, float32
    assert full["cache_bytes"] == 128 * slot
    assert pruned["cache_bytes"] == full["cache_bytes"] * 3 // 4
    assert (full["statistics_share"], full["decode_ratio"]) == (0, 1)
    assert full["bandwidth"] == pruned["bandwidth"] > 0.1
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(random_qwen2()[2]))
    for row in (full, pruned):
        read = row["roofline"] * row["decode_ms"] / 1e3 * row["bandwidth"] * 1e9
        assert read == pytest.approx(parameters + row["cache_bytes"] + 2 * slot)
    assert (shared["policy"], shared["budgets"]) == ("acckv", [0.75])
    assert shared["ratio"] > 1 + pruned["statistics_share"]


def test_table():
    rows = [
        Row("full", 1.0, 0.5, 0.0, 0.001, 0.002, 4.0, 1.0, 0.5, 2_000_000, 60_000, 3_000_000, 31.25),
        Row("acckv", 0.5, 0.6, 0.2, 0.1, 0.2, 3.0, 0.75, 0.6, 1_000_000, 30_000, 4_000_000, 31.25),
        Shared("acckv", (0.5, 0.7), 1.625),
    ]
    out = io.StringIO()
    Console(file=out, width=140).print(table(iter(rows), Options(context=128, steps=2)))
    shown = out.getvalue()
    assert "qwen2, 128 tokens, 2 decode steps, batch 1, measured bandwidth 31.2 GB/s" in shown
    assert "acckv: 2 budgets from one prefill (0.5, 0.7) take 1.62 of a plain prefill" in shown
    assert shown.count("│ full") == shown.count("│ acckv") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--context", "64"], "--context must be at least 65 tokens"),
        (["--context", "40000"], "--context and --steps must be at most 32768 together for qwen2, not 40064"),
        (["--steps", "0"], "--steps and --repeats must be at least 1"),
        (["--policies", "lru"], "unknown policy 'lru'; choose one of full,"),
        (["--budgets", "0.0"], "budget 0.0 is no fraction"),
        (["--context", "128", "--policies", "snapkv", "--budgets", "0.2"], "Policy snapkv at budget 0.2: "),
        (["--context", "128", "--policies", "acckv", "--budgets", "0.7"], "Policy acckv at budget 0.1: "),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""

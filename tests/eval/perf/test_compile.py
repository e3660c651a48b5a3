"""What compiling takes: a tiny model through all programs, and users' mistakes."""

import json

import jax
import jax.numpy as jnp
import pytest

import acckv_jax
from eval.perf.compile import main, programs
from eval.perf.plan import PRESETS, planned
from eval.perf.topologies import find_topology

SMALL = ["--topology", "cpu:8", "--contexts", "128", "--steps", "2", "--budget", "0.75", "--policies", "snapkv"]
BYTES = jnp.dtype(jnp.bfloat16).itemsize


@pytest.fixture(autouse=True)
def _cache_of_programs():
    """The command does without; other tests do not."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_all_programs_of_a_policy(capsys):
    tiny = PRESETS["tiny"]().decoder
    assert main(["--models", "tiny", *SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["program"]: row for row in found["programs"]}
    assert list(rows) == ["prefill", "score", "prune", "decode"]
    assert all(row["lowering"] > 0 and row["result"]["seconds"] > 0 and row["text"] > 1000 for row in rows.values())
    kv = (128 - 96 - 2) * 2 * tiny.num_key_value_heads // 2 * tiny.head_dim * BYTES * tiny.num_hidden_layers
    assert rows["score"]["result"]["outputs"] - rows["prefill"]["result"]["outputs"] > kv > 0


def test_cpus_decode_over_single_layers():
    """Without copying each out of a stack; accelerators read the stack."""
    plan = planned("tiny", find_topology("cpu:8"), None, 128, 2)
    policy, config = acckv_jax.SnapKV(budget=0.75), plan.preset.decoder
    stacked = f"<{config.num_hidden_layers}x{config.hidden_size}x{config.intermediate_size}xbf16>"
    assert stacked not in dict(programs(plan, policy))["decode"]().as_text()
    logits, cache = plan.result(plan.prefill(plan.group, policy))
    assert stacked in plan.decode(logits, cache, policy).as_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "smol"], "Unknown model 'smol'; choose one of smolav,"),
        (["--policies", "h3o"], "h3o"),
        (["--contexts", "64"], "--context must be above 64"),
        (["--topology", "cpu"], "There is no topology 'cpu'"),
        (["--budget", "0.01"], "keeps"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(["--topology", "cpu:8", *arguments]) == 2  # as many as tests have
    assert sentence in capsys.readouterr().err

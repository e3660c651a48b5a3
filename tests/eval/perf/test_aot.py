"""Compiling ahead of time: a tiny model through the same programs on 8 virtual CPU devices, and users' mistakes."""

import dataclasses
import importlib.metadata
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rich.console import Console

from eval.perf.aot import Options, chosen, main
from eval.perf.aot_report import Row, capacities, print_report
from eval.perf.compiled import Compiled, Moved, collectives, compiled, too_large
from eval.perf.plan import PRESETS, Plan, device_bytes
from eval.perf.topologies import GIB, Topology, find_topology
from models.devices import make_mesh
from models.errors import UserError

SMALL = ["--topology", "cpu:8", "--context", "128", "--batch", "8", "--steps", "2", "--budget", "0.75"]
SLOT = 2 * 3 * 2 * 16 * 2
"""Bytes of K and V of a token of the tiny thinker: layers, KV heads, head size, bfloat16."""


@pytest.fixture
def tiny_7b(monkeypatch):
    monkeypatch.setitem(PRESETS, "qwen2_5_omni_7b", PRESETS["tiny"])


@pytest.mark.complete
def test_programs_of_a_tiny_model(tiny_7b, capsys):
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mesh"] == {"data": 4, "tensor": 2}  # two KV heads
    rows = [(row["program"], row["cache"], row["rows"]) for row in found["programs"]]
    assert rows == [
        ("prefill", "full", 4),
        ("prefill", "pruned", 4),
        ("prune", "pruned", 4),
        ("decode", "full", 8),
        ("decode", "pruned", 8),
    ]
    kv = [row["kv"] for row in found["programs"]]
    full, pruned = (128 + 2) * SLOT // 2, (96 + 2) * SLOT // 2  # a row on each device, of half the heads
    assert kv == [full, pruned, pruned, 2 * full, 2 * pruned]
    assert found["capacity"] == []  # the memory of processors is not known
    for row in found["programs"]:
        result = row["result"]
        assert result["fits"] and result["flops"] > 0 and result["accessed"] > 0
        assert result["needs"] >= result["arguments"] + result["outputs"] - result["donated"] + result["temporaries"]
    prefill, _, prune, decode, _ = (row["result"] for row in found["programs"])
    inputs = 128 * (64 * 2 + 3 * 4 + 1) + 2 * 4  # embeddings, three axes of positions, modality; length and delta
    assert prefill["arguments"] == found["weights"] + inputs
    assert decode["donated"] > 2 * full
    # Rule 8 of docs/cache.md: neither a prune nor a decode step moves keys or values.
    for result in (prune, decode):
        assert all(moved["largest"] < 2 * full // 3 for moved in result["moved"]), result["moved"]


def test_weights_and_towers_are_those_of_the_shards():
    mesh = make_mesh(find_topology("cpu:8").devices, "data=1,fsdp=4,tensor=2", 2)
    plan = Plan.make(PRESETS["tiny"](), mesh, 128, 2)
    assert plan.group == 4
    whole = sum(leaf.size * 2 for leaf in jax.tree.leaves(plan.params))
    assert whole / 8 < device_bytes(plan.params) < whole / 7  # norms and biases are on all
    assert 0 < plan.towers


def test_mesh_by_default_divides_kv_heads():
    cpu = find_topology("cpu:8")
    assert [dict(make_mesh(cpu.devices, None, heads).shape) for heads in (4, 3, 2)] == [
        {"data": 2, "tensor": 4},
        {"data": 8},
        {"data": 4, "tensor": 2},
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "gpt2"], "Unknown model 'gpt2'; choose one of smolav, qwen2_5_omni_7b, qwen2_5_omni_3b"),
        (["--topology", "8 chips"], "There is no topology '8 chips'; give one like v5e:4x4, v5p:2x2x2 or cpu:8."),
        (["--topology", "cpu:0"], "There is no topology 'cpu:0'"),
        (["--mesh", "data=2,tensor=2"], "cpu:8 has 8 devices, but --mesh data 2 x tensor 2 is 4."),
        (["--mesh", "rows=8"], "--mesh 'rows=8' cannot be read; write sizes of data, fsdp, tensor like data=2"),
        (["--mesh", "data=8,data=1"], "--mesh 'data=8,data=1' cannot be read"),
        (["--batch", "3"], "--batch 3 cannot be divided over the 2 shards of rows of this mesh; give a multiple of 2."),
        (["--context", "32768"], "both together at most 32768 for qwen2_5_omni_7b, not 32768 and 2."),
        (["--context", "64"], "--context must be above 64"),
        (["--policy", "lru"], "unknown policy 'lru'"),
        (["--context", "128", "--budget", "0.1"], "Policy acckv: budget 0.1 keeps 13 of the 128 prompt tokens"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main([*SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.complete
@pytest.mark.packaging
def test_any_number_of_processors():
    command = [sys.executable, "-m", "eval.perf.aot", *SMALL, "--topology", "cpu:12", "--batch", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --batch 4 cannot be divided over the 3 shards of rows")


def test_tpus_need_libtpu():
    if any(each.name == "libtpu" for each in importlib.metadata.distributions()):
        assert len(find_topology("v5e:2x4").devices) == 8 and find_topology("v5p:2x2x2").memory == int(95.74 * GIB)
        with pytest.raises(UserError, match="There is no topology 'v5e:3x3'; libtpu says: "):
            find_topology("v5e:3x3")
    else:
        with pytest.raises(UserError, match=r"v5e:4x4 needs libtpu, .* pip install 'acckv-jax\[tpu\]'"):
            find_topology("v5e:4x4")


def test_programs_that_do_not_fit_are_told_by_the_compiler_in_two_ways():
    early = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (22.32G) exceeds"
    )
    late = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 30.5G of 15.75G hbm."
    assert too_large(f"{early} exceeds available HBM (15.75G).") == int(22.32 * GIB)
    assert too_large(late) == int(30.5 * GIB)
    assert too_large("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 30M of 16M vmem.") is None
    assert too_large("INTERNAL: hbm 3G") is None


def test_collectives_and_their_bytes():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=jax.NamedSharding(mesh, P("a")))
        found = compiled(jax.jit(lambda x: (x.sum(0), x.max())).lower(x))
    assert found.fits and sum(moved.number for moved in found.moved) >= 1
    assert {moved.kind for moved in found.moved} == {"all-reduce"}
    text = """
      %a = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=1
      %b = (f32[4,2], /*index=1*/pred[3]{0}) all-reduce(%c, %d)
      %e = f32[2] all-reduce-start(%f)
    """
    assert collectives(text) == (Moved("all-gather", 1, 64), Moved("all-reduce", 2, 35))


def report(memory: int | None, *results: Compiled) -> tuple[dict, list[Row], str]:
    about = {
        **dataclasses.asdict(Options()),
        "mesh": {"data": 4, "tensor": 4},
        "device": "TPU v5 lite",
        "devices": 16,
        "memory": memory,
        "weights": 4 * GIB,
        "towers": GIB,
        "tokens": 32768,
    }
    names = [("prefill", "full", 4), ("prefill", "pruned", 4), ("decode", "full", 32), ("decode", "pruned", 32)]
    sizes = [GIB // 8, GIB // 32, GIB, GIB // 4]
    rows = [Row(*name, size, size, each) for name, size, each in zip(names, sizes, results, strict=True)]
    out = io.StringIO()
    print_report(about, rows, Console(file=out, width=150))
    return about, rows, out.getvalue()


def of_size(needs: float) -> Compiled:
    return Compiled(True, int(needs * GIB), GIB, GIB, GIB, GIB, 2e12, 3e9, (Moved("all-reduce", 2, 35_000),), 1.0)


def test_capacity_is_arithmetic():
    about, rows, shown = report(15 * GIB, of_size(6), of_size(5.5), of_size(5.5), of_size(4.75))
    full, pruned = capacities(about, rows)
    # Full: towers 1 and prefill 6 of 15 GiB leave 8 for rows of 1/8 per group of 4.
    assert (full.fixed, full.rows, full.kv_share) == (7 * GIB, 64 * 4, pytest.approx(1 / 5.5))
    assert (pruned.fixed, pruned.rows) == (int(6.5 * GIB), 272 * 4)
    # Beside towers and weights 10 GiB: the prefill's 2 and the cache's 1 grow with the context.
    assert (
        full.tokens == int(20480 * 10 / 3) and "68,266 tokens of context at this batch (the model tells 32,768" in shown
    )
    assert "2 all-reduce, 35 kB" in shown and "256 rows at this context" in shown and "15.00 GiB for programs" in shown


def test_what_does_not_fit_is_told():
    about, rows, shown = report(15 * GIB, of_size(6), of_size(5), Compiled(False, 30 * GIB), of_size(5))
    assert [each.cache for each in capacities(about, rows)] == ["pruned"]
    assert "needs 30.00" in " ".join(shown.split())
    assert capacities(*report(None, *[of_size(5)] * 4)[:2]) == []


def test_the_7b_on_eight_processors():
    topology, plan, policy = chosen(Options(topology="cpu:8", context=128, batch=2, steps=2, budget=0.75))
    assert isinstance(topology, Topology) and topology.memory is None and len(topology.devices) == 8
    assert plan.decoder.num_layers == 28 and policy.budget == 0.75
    # A quarter of the 7B decoder's 7,615,616,512 parameters, less what little is replicated.
    assert device_bytes(plan.params) == pytest.approx(7_615_616_512 * 2 / 4, rel=1e-3)

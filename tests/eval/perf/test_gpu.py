"""The GPU's command on a CPU: a rehearsal at tiny size, checks that can fail, and users' mistakes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import acckv_jax
from eval.perf import episodes, gpu, gpu_rows
from eval.perf.flops import prefill_flops
from eval.perf.gpu import Options, main
from eval.perf.plan import PRESETS
from models.decoder import DecoderConfig

SMALL = ["--model", "tiny", "--contexts", "128", "--steps", "2", "--repeats", "1", "--budget", "0.75"]


@pytest.fixture
def few(monkeypatch):
    """Only one policy is checked."""
    monkeypatch.setattr(episodes, "CHECKED", {"knorm": acckv_jax.Knorm(budget=0.4)})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(gpu_rows, "measured_bandwidth", lambda: 1e9)


@dataclasses.dataclass(frozen=True)
class Drifting(acckv_jax.Knorm):
    """Chooses other slots in bfloat16 than in float32."""

    def token_scores(self, layer, context):
        scores = super().token_scores(layer, context)
        return scores if layer.keys.dtype == np.float32 else -scores


@pytest.mark.complete
def test_checks_pass(few, capsys, tmp_path):
    out = tmp_path / "found.json"
    assert main(["--only-checks", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "no GPU here: the CPU is compared with itself" in shown
    assert "DIFFERS" not in shown
    found = json.loads(out.read_text())
    assert [(one["dtype"], one["scans"]) for one in found["checks"]] == [
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
        ("bfloat16", True),
    ]
    assert found["checks"][0]["later"] == 0
    assert found["checks"][2]["later"] > 0
    assert found["rows"] == []


@pytest.mark.complete
def test_wrapped_policies_pass(monkeypatch):
    cpu, every = jax.devices("cpu")[0], episodes.CHECKED
    assert set(every) > set(acckv_jax.POLICIES)
    wrapped = {name: policy for name, policy in every.items() if "(" in name}
    assert {name.partition("(")[0] for name in wrapped} == set(acckv_jax.WRAPPERS)
    monkeypatch.setattr(episodes, "CHECKED", wrapped)
    assert [one for one in episodes.checks(cpu, cpu, None) if not one.passed] == []


@pytest.mark.complete
def test_other_slots_are_found(monkeypatch, capsys):
    monkeypatch.setattr(episodes, "CHECKED", {"drifting": Drifting(budget=0.4)})
    assert main(["--only-checks"]) == 1
    assert capsys.readouterr().out.count("DIFFERS") == 2  # in bfloat16


@pytest.mark.parametrize("damage", ["prompt", "later", "nan", "flag"])
def test_wrong_numbers_are_found(damage):
    held = np.zeros((1, 1, 4), np.int32) + np.arange(4, dtype=np.int32)
    one = acckv_jax.LayerCache(
        held, held, held, held, held >= 0, held, held, np.int32([4]), np.int32(4), np.array([damage != "flag"])
    )
    cache = acckv_jax.KVCache((one,), np.int32([4]), np.int32([0]))
    logits = np.array([[1.0, -2.0]], np.float32)
    right = episodes.Episode(logits, (logits, logits), cache, cache)
    wrong = {
        "prompt": right._replace(prompt=logits * 1.01),
        "later": right._replace(later=(logits, logits * 1.01)),
        "nan": right._replace(later=(logits, logits * np.nan)),
        "flag": right,
    }
    if damage != "flag":
        assert episodes.compared("full", "float32", True, right, right).passed
    assert not episodes.compared("full", "float32", True, wrong[damage], right).passed


def test_rows(quick, capsys, tmp_path):
    out = tmp_path / "found.json"
    arguments = ["--layers", "2", "--batches", "2", "--policies", "snapkv", "--json", str(out)]
    assert main([*SMALL, "--skip-checks", *arguments]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert (row["policy"], row["context"], row["batch"], row["problem"]) == ("snapkv", 128, 2, None)
    config = PRESETS["tiny"]().decoder
    kv_slot = 2 * 2 * config.num_key_value_heads * config.head_dim * 2  # K and V, layers, bfloat16
    assert row["kv_bytes"] == 2 * (96 + 2) * kv_slot
    assert row["tokens_per_second"] == pytest.approx(2e3 / row["decode_ms"])
    weights = row["roofline"] * row["decode_ms"] / 1e3 * row["bandwidth"] - row["kv_bytes"]
    vectors, heads = 64 * 64, 64 * 32  # of Q and O; of K and V
    layer = 2 * vectors + 2 * heads + 3 * 64 * 96 + 64 + 2 * 32 + 2 * 64  # products, biases, norms
    assert weights == pytest.approx(2 * (64 * 64 + 2 * layer + 64))  # bytes of a table that is the head too, and a norm
    assert row["prefill_needs"] > weights < row["decode_needs"]
    assert row["peak_share"] is None  # of a CPU
    assert "unknown" in capsys.readouterr().out


@pytest.mark.complete
def test_a_batch_that_does_not_fit(quick, monkeypatch, capsys, tmp_path):
    """The others are measured, and traced."""
    whole = gpu_rows.Served.decode_batch

    def decode(self, logits, cache, policy, rows):
        if rows == 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")
        return whole(self, logits, cache, policy, rows)

    monkeypatch.setattr(gpu_rows.Served, "decode_batch", decode)
    arguments = ["--skip-checks", "--batches", "8", "1", "--policies", "full", "--profile", str(tmp_path)]
    assert main([*SMALL, *arguments]) == 0
    shown = capsys.readouterr().out
    assert "full, 128 tokens, batch 8: out of memory: 8 rows cannot be decoded together." in shown
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_other_errors_are_not_called_out_of_memory():
    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        gpu_rows.fitting(broken)


def test_operations_of_a_prefill():
    config = DecoderConfig.tiny()  # hidden 32, 2 layers, 4 and 2 heads of 8, 48, vocabulary 96
    layer = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48
    attention = 2 * 2 * 4 * 8 * 10**2  # 2 layers, 2 products of H x T x T (half of them) in 4 heads
    assert prefill_flops(config, 10) == 2 * (2 * layer * 10 + 96 * 32) + attention


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "omni"], "Unknown model 'omni'; choose one of smolav,"),
        (["--layers", "0"], "--layers must be between 1 and 3 for tiny, not 0."),
        (["--contexts", "64"], "--context must be above 64"),
        (["--batches", "0"], "--batches and --repeats must be at least 1."),
        (["--policies", "lru"], "unknown policy 'lru'"),
        (["--budget", "0.01"], "Policy snapkv: "),
        (["--only-checks", "--skip-checks"], "leave nothing to do"),
        (["--json", "nowhere/found.json"], "There is no folder nowhere"),
    ],
)
def test_mistakes_exit_with_2(arguments, sentence, capsys):
    assert main(["--model", "tiny", "--contexts", "128", "--budget", "0.75", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_without_a_cpu(monkeypatch):
    def devices(platform=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(gpu.UserError, match="JAX_PLATFORMS=cuda,cpu"):
        gpu.reference_device()


def test_tolerances_are_told():
    table = gpu.check_table([], jax.devices()[0])
    assert all(dtype in str(table.caption) for dtype in episodes.TOLERANCES)
    assert Options().batches == (1, 8, 32)
